"""Source code: kept as it is. Definitions at the outermost level are headings, by rules of lines.

Invariant: a rule looks at one line; a definition that it misses costs a heading, never text.
"""

from __future__ import annotations

import re

from kvasir.documents.building import Builder

_PYTHON = r"(?:async[ ]+)?(?:def|class)[ ]+\w+"
_SCRIPT = (
    r"(?:export[ ]+)?(?:default[ ]+)?(?:declare[ ]+)?(?:abstract[ ]+)?(?:async[ ]+)?"
    r"(?:function\b[* ]*\w+|class[ ]+\w+|interface[ ]+\w+|enum[ ]+\w+|namespace[ ]+\w+"
    r"|type[ ]+\w+[^=]{0,80}=|(?:const|let|var)[ ]+\w+[^=]{0,80}=[ ]*(?:async[ ]*)?(?:\(|function))"
)
_GO = r"(?:func[ ]+(?:\([^)]{0,80}\)[ ]*)?\w+|type[ ]+\w+)"
_RUST = (
    r"(?:pub(?:\([^)]{0,40}\))?[ ]+)?(?:default[ ]+)?(?:const[ ]+)?(?:async[ ]+)?(?:unsafe[ ]+)?"
    r"(?:extern[ ]+\"[^\"]{0,20}\"[ ]+)?"
    r"(?:(?:fn|struct|enum|trait|mod|union|type)[ ]+\w+|impl\b.{0,120}|macro_rules![ ]*\w+)"
)
_C_LIKE = (
    r"(?:(?:typedef[ ]+)?(?:struct|enum|union|class|namespace|interface)[ ]+\w+"
    r"|(?!(?:return|else|if|for|while|switch|case|using|goto|delete|throw)\b)"
    r"[A-Za-z_][\w:<>,*&\[\] ]{1,120}[ *&]~?[\w:]+[ ]*\([^;]{0,200}$)"
)
_JAVA = (
    r"(?:(?:public|private|protected|internal|static|final|abstract|sealed|open|data|partial)[ ]+)*"
    r"(?:class|interface|enum|record|struct|namespace|object|fun|func|protocol|extension)[ ]+\w+"
)
_RUBY = r"(?:class|module|def)[ ]+[\w.:?!]+"
_PHP = r"(?:(?:abstract|final)[ ]+)?(?:class|interface|trait|function|enum)[ ]+\w+"
_SHELL = r"(?:function[ ]+[\w-]+|[\w-]+[ ]*\(\)[ ]*\{?)"
_SQL = r"(?i:create[ ]+(?:or[ ]+replace[ ]+)?(?:temp(?:orary)?[ ]+)?\w+[ ]+\S+)"

_RULES = {
    "text/x-python": _PYTHON,
    "text/javascript": _SCRIPT,
    "text/x-typescript": _SCRIPT,
    "text/x-go": _GO,
    "text/x-rust": _RUST,
    "text/x-c": _C_LIKE,
    "text/x-c++": _C_LIKE,
    "text/x-csharp": _JAVA,
    "text/x-java": _JAVA,
    "text/x-kotlin": _JAVA,
    "text/x-swift": _JAVA,
    "text/x-php": _PHP,
    "text/x-ruby": _RUBY,
    "text/x-shellscript": _SHELL,
    "text/x-sql": _SQL,
}
_COMPILED = {media_type: re.compile(rule) for media_type, rule in _RULES.items()}
_MAX_LINE = 300  # longer lines are generated, or data


def read(text: str, build: Builder) -> None:
    """Fill ``build`` with ``text``, which has ``\\n`` line ends."""
    build.add(text)
    rule = _COMPILED.get(build.media_type)
    if rule is None:
        return
    at = 0
    for line in text.split("\n"):
        if line and len(line) <= _MAX_LINE and not line[0].isspace() and rule.match(line):
            build.heading(1, line.rstrip(" {:"), at)
        at += len(line) + 1
