"""HTML pages from templates, which load nothing from elsewhere and run no script but their own.

All content is escaped. The page's content security policy also allows the browser to run only the script with the hash
that the page names.
"""

import base64
import functools
import hashlib
import math
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from sintrovae_jax import files

MOST = 5_000_000  # the most bytes of a page
_VALUE = 300  # the most characters of a value


def write(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Fills a template and writes the page. Raises `Unavailable` if that fails. Returns the path."""
    text = _readable(_environment().get_template(template).render(content, **_parts()))
    with files.storing(path), files.replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))  # file names may contain any bytes
    return path


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sintrovae_jax.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"value": value, "count": count, "duration": duration, "quoted": shlex.quote}
    return environment


def _parts() -> dict[str, str]:
    """The style sheet, the script, and the script's hash in the form of a content security policy."""
    folder = resources.files("sintrovae_jax.reports") / "templates"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"style": style, "script": script, "script_hash": f"sha256-{digest}"}


def _readable(text: str) -> str:
    """The text with control characters, which HTML does not allow, escaped."""
    controls = {i: f"\\x{i:02x}" for i in [*range(32), *range(127, 160)] if chr(i) not in "\n\t"}
    return text.translate(controls)


def value(x: object) -> str:
    """A config value or a metric as readable text."""
    if isinstance(x, bool) or x is None:
        return {True: "True", False: "False", None: "–"}[x]
    if isinstance(x, float):
        return f"{x:.5g}".replace("-", "−")
    if isinstance(x, list | tuple):
        text = f"({', '.join(map(value, x[:_VALUE]))}{',' if len(x) == 1 else ''})"  # as on the command line
    else:
        text = str(x)
    return text if len(text) <= _VALUE else f"{text[:_VALUE]}…"


def count(x: object) -> str:
    """A number with thousands separators; anything but a finite number as by `value`."""
    if not isinstance(x, int | float) or isinstance(x, bool) or not math.isfinite(x):
        return value(x)
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def duration(seconds: float) -> str:
    """1 h 02 min, 3 min 04 s or 5.6 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"
