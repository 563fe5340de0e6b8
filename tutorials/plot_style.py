"""The look of the tutorials' figures: small, readable in gray. ``from plot_style import plt``"""

import matplotlib.pyplot as plt

plt.rcParams.update(
    {
        "figure.figsize": (7.0, 3.4),
        "figure.dpi": 80,
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        # Blue, orange, green, black: apart by lightness too. Lines also differ by style and marker.
        "axes.prop_cycle": plt.cycler(color=["#0072b2", "#d55e00", "#009e73", "black", "#999999"])
        + plt.cycler(linestyle=["-", "--", "-.", ":", "-"])
        + plt.cycler(marker=["o", "s", "^", "D", "v"]),
        "lines.markersize": 4,
    }
)

__all__ = ["plt"]
