"""README.md and docs/ as the tests read them: sections, anchors, code, commands, translations."""

import pathlib
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from flaxcls.__main__ import COMMANDS

ROOT = pathlib.Path(__file__).resolve().parents[2]
_PAGES = [
    pathlib.Path('README.md'),
    pathlib.Path('README.zh.md'),
    *(path.relative_to(ROOT) for path in sorted((ROOT / 'docs').rglob('*.md'))),
]
# What no English page says.
CHINESE_ONLY = [pathlib.Path('docs/glossary.zh.md')]
# Their commands are those of their originals, which test_translations.py compares.
TRANSLATIONS = [
    page for page in _PAGES if page.name.endswith('.zh.md') and page not in CHINESE_ONLY
]
DOCUMENTS = [page for page in _PAGES if not page.name.endswith('.zh.md')]
TRANSLATED_NOTEBOOKS = [
    path.relative_to(ROOT) for path in sorted((ROOT / 'notebooks').glob('*.zh.ipynb'))
]
# What a command in prose begins with.
PROGRAMS = (
    *('python', 'make', 'pip', 'git', 'apt-get', 'sbatch', 'srun', 'mpirun', 'curl', 'npm'),
    *('tensorboard', 'flaxcls'),
)
_CODE = re.compile(r'^```(\w*)\n(.*?)^```$|`([^`]+)`', re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r'[A-Z_]+=')


class Code(NamedTuple):
    """A block of code, or a piece of it within prose."""

    section: str  # The heading of second level that it stands under.
    language: str  # Of a block, '' where it names none; 'prose' of code within a paragraph.
    text: str


def code(document: pathlib.Path) -> list[Code]:
    """Returns all code of a document, in its order."""
    text = (ROOT / document).read_text(encoding='utf-8')
    found = []
    for match in _CODE.finditer(text):
        headings = re.findall(r'^## (.+)$', text[: match.start()], re.MULTILINE)
        section = headings[-1] if headings else 'top'
        language, block, span = match.groups()
        if span is None:
            found.append(Code(section, language, block))
        else:
            found.append(Code(section, 'prose', ' '.join(span.split())))
    return found


def anchors(document: pathlib.Path) -> list[str]:
    """Returns the anchor of each heading of a page, as GitHub makes them."""
    text = (ROOT / document).read_text(encoding='utf-8')
    headings = re.findall(r'^#+ (.+)$', text, re.MULTILINE)
    return [re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings]


def prose_code(document: pathlib.Path) -> list[str]:
    """Returns the code within the paragraphs of a document."""
    return [piece.text for piece in code(document) if piece.language == 'prose']


def commands(piece: Code) -> Iterator[str]:
    """Yields what a shell would be given, line by line, with the comments of blocks.

    A block that names no language is for the shell; of prose, only what begins with a program is,
    and is neither a pattern such as `main ...` nor the mere name of a command.
    """
    if piece.language == 'prose':
        text = piece.text.removeprefix('!')
        named = text.removeprefix('flaxcls ') in {*COMMANDS, 'COMMAND'}
        if text.split()[0] in PROGRAMS and ' ' in text and not text.endswith('...') and not named:
            yield text
    elif not piece.language:
        for line in piece.text.replace('\\\n', ' ').splitlines():
            if line.strip() and not line.startswith('#'):
                yield line


def write_file(piece: Code, folder: pathlib.Path) -> bool:
    """Writes a block that begins with its name, as in `# my_network.py`; others are no files."""
    match = re.match(r'# (\w+\.py)\n', piece.text)
    if match:
        (folder / match[1]).write_text(piece.text, encoding='utf-8')
    return bool(match)


class Command(NamedTuple):
    environment: dict[str, str]
    arguments: list[str]

    def __str__(self) -> str:
        return shlex.join(self.arguments)


def parse(line: str) -> list[Command]:
    """Returns the commands that `&&` joins in a line."""
    found, words = [], []
    for word in [*shlex.split(line, comments=True), '&&']:
        if word != '&&':
            words.append(word)
            continue
        environment = {}
        while _ASSIGNMENT.match(words[0]):
            name, _, value = words.pop(0).partition('=')
            environment[name] = value
        found.append(Command(environment, words))
        words = []
    return found
