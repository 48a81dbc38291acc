"""``python -m segaware``."""

from segaware.cli.main import main

if __name__ == "__main__":
    main(prog_name="segaware")
