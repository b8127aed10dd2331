"""`python -m shardkit`: the same as the `shardkit` command."""

from shardkit.cli import run

if __name__ == "__main__":
    run()
