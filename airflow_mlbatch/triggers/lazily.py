"""What a trigger needs is imported in a thread, once it runs.

The triggerer imports the modules of triggers on its event loop. All that a trigger needs would hold the
loop for a tenth of a second.
"""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

__all__ = ["loaded"]


async def loaded(module: str, name: str) -> Any:
    """Something that a module of the hooks has, such as a function."""
    path = f"airflow_mlbatch.hooks.{module}"
    return getattr(await asyncio.to_thread(importlib.import_module, path), name)
