"""The version of this service, as `/health`, the build metric and the `version` command show it."""

from typing import Final

VERSION: Final = "0.1.0"
