"""Start file of the host: `python -I -u <plugins>/kestrel/inference/host/__main__.py`. Everything else comes in frames.

Run as a file in isolated mode, for the same reasons as the worker's start file.
"""

import importlib
import os
import sys

# Symbolic links stay as they are: the plugin folder's name is the package's name, where it leads to is not.
_PLUGIN = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120

if __name__ == "__main__":
    _PLUGINS = os.path.dirname(_PLUGIN)  # noqa: PTH120
    sys.path.append(_PLUGINS)
    host = importlib.import_module(os.path.basename(_PLUGIN) + ".inference.host.host")  # noqa: PTH119
    sys.path.remove(_PLUGINS)  # the program finds no other plugins; this package finds its own modules by itself
    host.leave(host.run())
