"""`python -m agentloop` is the command line."""

from agentloop.cli import main

if __name__ == "__main__":
    main()
