"""`python -m saliency_lab.cli`, for where the script is not on the path."""

from saliency_lab.cli.app import main

if __name__ == "__main__":
    main()
