"""How a plan, a verdict or a summary looks in a notebook, in light and dark.

Colours are those of the surroundings where these say what they are (JupyterLab, VS Code, pages of
the PyData theme), else those that the system prefers: text never stands on a ground that it does
not know.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

_LIGHT = "--dc-text: #1f2328; --dc-soft: #57606a; --dc-ground: #ffffff; --dc-line: #d0d7de;"
_LIGHT += " --dc-band: #f6f8fa; --dc-good: #116329; --dc-bad: #a40e26; --dc-note: #7d4e00;"
_DARK = "--dc-text: #e6edf3; --dc-soft: #9da7b3; --dc-ground: #111418; --dc-line: #3d444d;"
_DARK += " --dc-band: #1c2128; --dc-good: #56d364; --dc-bad: #ff8a80; --dc-note: #e3b341;"

# Themes that say which they are come last: a light page on a dark system is light. The light theme
# of high contrast bears both names in VS Code.
_STYLE = f"""
.dask-consensus {{ {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ .dask-consensus {{ {_DARK} }} }}
[data-jp-theme-light="true"] .dask-consensus, body.vscode-light .dask-consensus,
body.vscode-high-contrast-light .dask-consensus,
html[theme="light"] .dask-consensus, [data-theme="light"] .dask-consensus {{ {_LIGHT} }}
[data-jp-theme-light="false"] .dask-consensus, body.vscode-dark .dask-consensus,
body.vscode-high-contrast:not(.vscode-high-contrast-light) .dask-consensus,
html[theme="dark"] .dask-consensus, [data-theme="dark"] .dask-consensus {{ {_DARK} }}
.dask-consensus {{
  color: var(--jp-content-font-color0, var(--vscode-editor-foreground,
    var(--pst-color-text-base, var(--dc-text))));
  background: var(--jp-layout-color0, var(--vscode-editor-background,
    var(--pst-color-background, var(--dc-ground))));
  font-size: 0.95em; line-height: 1.45; padding: 0.5em 0.8em; max-width: 70em;
  border: 1px solid var(--dc-line); border-radius: 4px; overflow-x: auto;
}}
.dask-consensus > header {{ font-weight: 600; margin-bottom: 0.3em; }}
.dask-consensus p {{ margin: 0.3em 0; max-width: 60em; }}
.dask-consensus .dc-good {{ color: var(--dc-good); }}
.dask-consensus .dc-bad {{ color: var(--dc-bad); }}
.dask-consensus .dc-note {{ color: var(--dc-note); }}
.dask-consensus .dc-soft {{ color: var(--dc-soft); }}
.dask-consensus details {{ margin: 0.3em 0; }}
.dask-consensus summary {{ cursor: pointer; font-weight: 600; }}
.dask-consensus table.dc-table {{
  border-collapse: collapse; border: none; margin: 0.2em 0 0.5em; font-size: 1em; width: auto;
  color: inherit; display: table;
}}
.dask-consensus .dc-table th, .dask-consensus .dc-table td {{
  text-align: left; vertical-align: top; padding: 0.15em 0.9em 0.15em 0; border: none;
  white-space: normal; max-width: 45em; background: transparent; color: inherit;
}}
.dask-consensus .dc-table th {{ border-bottom: 1px solid var(--dc-line); color: var(--dc-soft); }}
.dask-consensus .dc-table tbody tr, .dask-consensus .dc-table tbody tr:hover {{
  background: transparent; color: inherit;
}}
.dask-consensus .dc-table tbody tr:nth-child(even) {{ background: var(--dc-band); }}
.dask-consensus .dc-table .dc-number {{
  text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap;
}}
"""


def page(title: str, parts: Sequence[str], kind: str = "") -> str:
    """Set parts, marked up, under a title, which is plain text; `kind` is "good", "bad" or none."""
    colour = f' class="dc-{kind}"' if kind else ""
    head = f"<header><span{colour}>{html.escape(title)}</span></header>"
    return f'<div class="dask-consensus"><style>{_STYLE}</style>{head}{"".join(parts)}</div>'


def paragraph(text: str, kind: str = "") -> str:
    """Mark plain text up as a paragraph; `kind` is "note", "soft", "good", "bad" or none."""
    colour = f' class="dc-{kind}"' if kind else ""
    return f"<p{colour}>{html.escape(text)}</p>"


def section(title: str, body: str, *, unfolded: bool = True) -> str:
    """Set a body, marked up, under a title, which is plain text, that folds it away."""
    state = " open" if unfolded else ""
    return f"<details{state}><summary>{html.escape(title)}</summary>{body}</details>"
