"""`python -m robustrun`, for interpreters whose scripts are not on the path."""

from robustrun.cli import main

if __name__ == "__main__":
    main()
