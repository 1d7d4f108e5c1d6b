"""``python -m hicl_d2 train ...`` is ``hicl train ...``."""

from hicl_d2.tools.hicl import main

if __name__ == "__main__":
    main()
