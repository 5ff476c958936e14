"""Start the `audiocl` command from a clone: `python cli.py run --method pace ...`."""

from audiocl_bench.cli import main

if __name__ == "__main__":
    main()
