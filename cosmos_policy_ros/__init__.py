"""Cosmos Policy on the ALOHA bimanual rig.

Rooms, lowest first (imports run downwards only): ``core``, ``rig``, ``environments``, ``model``,
``sim``, ``bags``, ``episodes``, ``inference``, ``dataset``, ``interop``, ``planning``,
``training``, ``evaluation``, ``panel``, ``nodes``, ``cli``.
"""

from pkgutil import extend_path

# rosidl installs the generated msg, srv and action modules into a package of this same name.
# Extending the path makes them and this source tree one package, whichever comes first.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
