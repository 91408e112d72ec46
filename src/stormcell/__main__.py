"""`stormcell` and `python -m stormcell`: the command line, or what to install for it."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; the layers alone install without what it needs."""
    try:
        from .cli import main as run

        return run()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("stormcell"):
            raise
        print(
            f"stormcell: the command line needs {error.name}, which is not installed: pip install 'stormcell[forecast]'",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
