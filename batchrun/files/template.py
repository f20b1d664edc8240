"""Jinja2 templates as plain functions of a row's cells; jinja2 is imported when the first one is compiled.

What fails is said in terms of columns and lines: Jinja's own messages may quote a row.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from batchrun.errors import UsageError
from batchrun.files.wording import names_of

_WHOLE_ROW = "row"


def compiled(text: str) -> Callable[[dict[str, Any]], tuple[str, str]]:
    """The template as a function: cells -> (prompt, why there is none; empty when there is one).

    Raises:
        UsageError: it does not compile; the message names the line.
    """
    from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError, meta
    from jinja2.sandbox import SandboxedEnvironment

    env = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False, finalize=_printable)
    try:
        template = env.from_string(text)
        wanted = sorted(meta.find_undeclared_variables(env.parse(text)) - {_WHOLE_ROW})
    except TemplateSyntaxError as error:
        raise UsageError(f"The template does not compile: line {error.lineno}: {error.message}") from error

    def fill(cells: dict[str, Any]) -> tuple[str, str]:
        try:
            return template.render({_WHOLE_ROW: cells, **cells}), ""
        except UndefinedError as error:
            return "", _undefined(error, [name for name in wanted if name not in cells], cells)
        except Exception as error:  # noqa: BLE001 - a template may divide by zero, add text to numbers, anything
            return "", f"the template fails with {type(error).__name__}{_line(error)}"

    return fill


def _printable(value: Any) -> Any:
    """Binary columns print as they do in JSON, and not as Python would show them."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _undefined(error: Exception, missing: list[str], cells: dict[str, Any]) -> str:
    if not missing:
        return f"the template asks for something that is not in the row{_line(error)}"
    names = ", ".join(f"`{name}`" for name in missing)
    return f"the template uses {names}, and the columns are: {names_of(cells)}"


def _line(error: Exception) -> str:
    """Where in the template it was; Jinja writes its line numbers into the traceback."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f" (line {line} of the template)"
