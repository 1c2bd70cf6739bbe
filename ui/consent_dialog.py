"""What a package's program is, shown before it may run: the only place where somebody is asked."""

from __future__ import annotations

import io
import re
import tempfile
import tokenize
import unicodedata
import zipfile
import zlib
from pathlib import Path

from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QFontDatabase
from qgis.PyQt.QtWidgets import (
    QAbstractItemView,
    QDialog,
    QDialogButtonBox,
    QHeaderView,
    QLabel,
    QPlainTextEdit,
    QPushButton,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from ..inference.models.package import ModelPackage
from ..inference.models.program import extract_program, placed
from ..processing_provider.code_consent import allow, allow_this_time, is_denied, look_anew, policy_text
from ..processing_provider.text import size_text, to_plain, tr

MAX_PREVIEW_BYTES = 256 * 2**10
_MAX_TORCHSCRIPT_BYTES = 64 * 2**20
_MOST_SCRIPTS = 20
_MOST_MEMBERS = 20_000
_ENTRY_SIGNATURE = b"PK\x01\x02"
_ENCODINGS = ("utf-8", "utf-8-sig", "ascii", "latin-1", "iso-8859-1", "iso-8859-15", "cp1252")
_FILLERS = "\u115f\u1160\u17b4\u17b5\u3164\uffa0\u2800"
"""Letters that look like nothing at all."""
_ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError)


class ConsentDialog(QDialog):
    """Shows the program of a package and asks whether exactly this content may run.

    What is shown is a private copy, hashed while it was made: the package may change while somebody reads.

    Args:
        package: The opened package.
        source: Where the package came from.

    Raises:
        InferenceError: the program cannot be read, or changed meanwhile.
    """

    def __init__(self, package: ModelPackage, source: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._sha256, self._name = look_anew(package), package.definition.name
        self._private = tempfile.TemporaryDirectory(prefix="kestrel-look-", ignore_cleanup_errors=True)
        copy = extract_program(package, Path(self._private.name) / "program", self._sha256)
        self.setWindowTitle(tr("Allow the program of a model?"))
        self.once = QPushButton(tr("Allow this time"))
        self.always = QPushButton(tr("Always allow exactly this content"))
        self.buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel)
        self.files = _file_list(copy)
        self.preview = _preview(placed(package, copy, package.definition.program))
        self.finished.connect(lambda *_: self._private.cleanup())
        self._lay_out(package, source)
        self._connect()
        self.resize(760, 640)

    def _lay_out(self, package: ModelPackage, source: str) -> None:
        program = to_plain(package.definition.program)
        introduction = tr(
            "The model {model} is a program: {program} runs with your rights, and can read, change and send whatever "
            "you can. Kestrel cannot tell whether it is harmless. Allow it only if you trust where it comes from."
        ).format(model=f"\u201c{to_plain(package.definition.name, 80)}\u201d", program=f"\u201c{program}\u201d")
        facts = "\n".join(
            (tr("From: {source}").format(source=to_plain(source)), tr("SHA-256: {hash}").format(hash=self._sha256))
        )
        column = QVBoxLayout(self)
        column.addWidget(_label(introduction))
        column.addWidget(_label(facts, is_selectable=True))
        column.addWidget(_label(tr("Files that belong to the program")))
        column.addWidget(self.files, 1)
        column.addWidget(_label(tr("Start of {program}").format(program=program)))
        column.addWidget(self.preview, 3)
        column.addWidget(_label(policy_text()))
        column.addWidget(self.buttons)

    def _connect(self) -> None:
        for button in (self.once, self.always):
            self.buttons.addButton(button, QDialogButtonBox.ButtonRole.AcceptRole)
            button.setAutoDefault(False)
            button.setEnabled(not is_denied())
        cancel = self.buttons.button(QDialogButtonBox.StandardButton.Cancel)
        cancel.setDefault(True)
        cancel.setFocus()
        self.once.clicked.connect(lambda *_: allow_this_time(self._sha256))
        self.always.clicked.connect(lambda *_: allow(self._sha256, self._name))
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)


def _label(text: str, is_selectable: bool = False) -> QLabel:
    label = QLabel()
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setText(text)
    label.setWordWrap(True)
    if is_selectable:
        label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return label


def _file_list(copy: Path) -> QTreeWidget:
    tree = QTreeWidget()
    tree.setRootIsDecorated(False)
    tree.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
    tree.setHeaderLabels([tr("File"), tr("Size")])
    tree.header().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
    tree.header().setStretchLastSection(False)
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        item = QTreeWidgetItem([to_plain(path.relative_to(copy).as_posix()), size_text(path.stat().st_size)])
        item.setTextAlignment(1, Qt.AlignmentFlag.AlignRight)
        tree.addTopLevelItem(item)
    return tree


def _preview(program: Path) -> QPlainTextEdit:
    edit = QPlainTextEdit()
    edit.setReadOnly(True)
    edit.setLineWrapMode(QPlainTextEdit.LineWrapMode.WidgetWidth)  # nothing hides far to the right
    edit.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
    edit.setPlainText(program_text(program))
    return edit


def program_text(program: Path) -> str:
    """Give the start of the main file as text in which nothing hides."""
    try:
        with program.open("rb") as stream:
            start = stream.read(MAX_PREVIEW_BYTES + 1)
            if start.startswith(b"PK\x03\x04"):
                return _visible(_script_text(start + stream.read(_MAX_TORCHSCRIPT_BYTES)))
    except _ARCHIVE_ERRORS as error:
        return tr("The file cannot be shown: {error}").format(error=to_plain(error))
    text = _visible(_decoded(start[:MAX_PREVIEW_BYTES]))
    rest = tr("The file goes on; what follows is not shown here.")
    return f"{text}\n\n\u2026 {rest}" if len(start) > MAX_PREVIEW_BYTES else text


def _decoded(source: bytes) -> str:
    """Give the text as Python reads it; an encoding in which code can look like a comment is not decoded at all."""
    # Python ends a line at a lone carriage return as well, this function does not: a cookie could hide behind one.
    lines = source.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(lines).readline)[0]
    except SyntaxError:
        encoding = "?"
    if encoding.lower() in _ENCODINGS:
        return source.decode(encoding, "replace")
    warning = tr(
        "This file is written in the encoding \u201c{name}\u201d, in which code can look like a comment: do not allow "
        "it unless you know why. Its bytes:"
    ).format(name=to_plain(encoding, 40))
    return f"{warning}\n\n{source.decode('ascii', 'backslashreplace')}"


_GRAPH = re.compile(r"(/models/[^/]*|^serialized_exported_program)\.json$")
"""Where an exported program has its graph."""


def _script_text(data: bytes) -> str:
    """Give the source texts in a TorchScript file, or the graph in an exported program: both are zip archives."""
    if len(data) > _MAX_TORCHSCRIPT_BYTES:
        return tr("A compiled network (TorchScript), too large to be shown.")
    if data.count(_ENTRY_SIGNATURE) > _MOST_MEMBERS:  # zipfile would build all of them, whatever the end says
        return tr("A compiled network (TorchScript) with too many parts to be shown: do not allow it.")
    parts, left = [tr("A compiled network (TorchScript). The code in it:")], MAX_PREVIEW_BYTES
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        scripts = [info for info in archive.infolist() if info.filename.endswith(".py")]
        graphs = [info for info in archive.infolist() if _GRAPH.search(info.filename)]
        if graphs and not scripts:
            parts, scripts = [tr("A network that torch exported. Its graph:")], graphs
        if len(scripts) > _MOST_SCRIPTS:
            parts.append(
                tr("Of {count} scripts in it {shown} are shown.").format(count=len(scripts), shown=_MOST_SCRIPTS)
            )
        for info in scripts[:_MOST_SCRIPTS]:
            with archive.open(info) as stream:
                text = stream.read(left).decode("utf-8", "replace")
            left -= len(text)
            cut = "" if info.file_size <= len(text.encode()) else "\u2026 " + tr("what follows is not shown here")
            parts += [f"# {info.filename}", text + cut]
    return "\n\n".join(parts)


def _visible(text: str) -> str:
    """Write out characters that change how the others are read: what is shown is what runs."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")  # Python ends a line, and a comment, at each of them
    return "".join(character if _is_plain(character) else f"\\u{{{ord(character):x}}}" for character in lines)


def _is_plain(character: str) -> bool:
    is_seen = unicodedata.category(character) not in ("Cc", "Cf", "Cn", "Co", "Cs", "Me", "Mn", "Zl", "Zp")
    return character in "\n\t" or (is_seen and character not in _FILLERS)
