"""A program that stands in for ``cosmos`` in makefiles; see :func:`helpers.forked.served`."""

import sys
from multiprocessing.connection import Client
from pathlib import Path

if __name__ == "__main__":
    with Client(sys.argv[1]) as connection:
        connection.send((sys.argv[2:], str(Path.cwd())))
        code, printed = connection.recv()
    print(printed, end="")
    sys.exit(code)
