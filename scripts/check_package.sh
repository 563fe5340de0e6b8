#!/usr/bin/env bash
# Builds the source distribution and the wheel, installs the wheel in a fresh environment that borrows this one's
# packages, and runs it. Needs the package `build`; takes less than a minute.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The build must not see files that a fresh checkout lacks.
git ls-files -z --cached --others --exclude-standard | xargs -0 -I{} sh -c '[ ! -e "$1" ] || printf "%s\0" "$1"' _ {} |
    tar --null -T - -cf - | tar -xf - -C "$work" --one-top-level=source
"$python" -m build --outdir "$work/dist" "$work/source" >"$work/log" 2>&1 || { tail -20 "$work/log" >&2; exit 1; }

listing=$(tar -tzf "$work"/dist/*.tar.gz)
for file in tests/conftest.py benchmarks/conftest.py tutorials/README.md docs/index.md mkdocs.yml; do
    grep -q "/$file\$" <<<"$listing" || { echo "the source distribution lacks $file" >&2; exit 1; }
done

"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-deps --no-index "$work"/dist/*.whl
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
own=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$site" >"$own/zz_borrowed.pth" # packages of the running environment, after the fresh one's own
cd "$work"
"$work/venv/bin/python" - <<'PY'
import minimoe
from minimoe import GPT, ModelConfig
from minimoe.claims import CLAIMS

assert "venv" in minimoe.__file__, minimoe.__file__
assert CLAIMS and GPT(ModelConfig(dim=16, n_layers=1, n_heads=1, context=8, hidden_dim=16))
PY
"$work/venv/bin/minimoe" --version
echo "wheel and source distribution: $(cd "$work/dist" && echo *)"
