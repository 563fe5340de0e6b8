"""Draws the rooms of the package and the imports between them as an SVG, layer by layer."""

from tree import arrows, direct, floors, rooms

WIDTH, ROW, BOX_W, BOX_H, MARGIN = 760, 84, 118, 38, 14
TECHNIQUES = ("moe", "precision", "distill", "rl", "kernels")


def layers() -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Rows of nodes from the bottom, and edges between neighboring rows. An edge that spans several rows
    passes through an invisible node ("a>b:2") in each row between."""
    edges = arrows()
    floor = floors(list(rooms()), edges)
    rows: list[list[str]] = [[] for _ in range(max(floor.values()) + 1)]
    for room, level in floor.items():
        rows[level].append(room)
    pieces = []
    for above, below in direct(edges):
        last = above
        for level in range(floor[above] - 1, floor[below], -1):
            rows[level].append(f"{above}>{below}:{level}")
            pieces.append((last, rows[level][-1]))
            last = rows[level][-1]
        pieces.append((last, below))
    return rows, pieces


def places(rows: list[list[str]], pieces: list[tuple[str, str]]) -> dict[str, tuple[float, float]]:
    """The centre of every node: rows sorted so that few edges cross, by the mean position of neighbors."""
    x = {node: (i + 0.5) / len(row) for row in rows for i, node in enumerate(row)}
    for sweep in range(24):
        for row in rows if sweep % 2 else rows[::-1]:
            near = {node: [x[b if a == node else a] for a, b in pieces if node in (a, b)] for node in row}
            row.sort(key=lambda node: (sum(near[node]) / max(len(near[node]), 1), node))
            x |= {node: (i + 0.5) / len(row) for i, node in enumerate(row)}
    top = len(rows) - 1
    return {
        node: (MARGIN + x[node] * (WIDTH - 2 * MARGIN), MARGIN + BOX_H / 2 + (top - level) * ROW)
        for level, row in enumerate(rows)
        for node in row
    }


def picture() -> str:
    """The SVG. Its colours are readable on a light and on a dark page."""
    rows, pieces = layers()
    place = places(rows, pieces)
    height = 2 * MARGIN + BOX_H + (len(rows) - 1) * ROW
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        'font-family="system-ui, sans-serif" font-size="15">',
        "<title>The rooms of minimoe and the imports between them</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#8d93b0"/></marker></defs>',
    ]
    for above, below in pieces:
        (x1, y1), (x2, y2) = place[above], place[below]
        y1 += 0 if ">" in above else BOX_H / 2
        y2 -= 0 if ">" in below else BOX_H / 2 + 1
        bend, tip = (y2 - y1) / 2, "" if ">" in below else ' marker-end="url(#tip)"'
        out.append(
            f'<path d="M{x1:.1f} {y1:.1f} C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} '
            f'{x2:.1f} {y2:.1f}" fill="none" stroke="#8d93b0" stroke-width="1.6"{tip}/>'
        )
    for room, (x, y) in place.items():
        if ">" in room:
            continue
        fill = "#00796b" if room in TECHNIQUES else "#3f51b5"
        out.append(
            f'<rect x="{x - BOX_W / 2:.1f}" y="{y - BOX_H / 2:.1f}" width="{BOX_W}" height="{BOX_H}" rx="6" '
            f'fill="{fill}"/><text x="{x:.1f}" y="{y + 5:.1f}" text-anchor="middle" fill="#fff">{room}</text>'
        )
    return "\n".join([*out, "</svg>"]) + "\n"


if __name__ == "__main__":
    print(picture())
