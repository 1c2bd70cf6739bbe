"""What a package's program is, shown before it may run: the only place where somebody is asked."""

from __future__ import annotations

import io
import unicodedata
import zipfile
import zlib

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

from ..inference.errors import InferenceError
from ..inference.models.package import ModelPackage
from ..inference.models.program import program_files
from ..processing_provider.code_consent import allow, allow_this_time, is_denied, policy_text
from ..processing_provider.text import size_text, to_plain, tr

MAX_PREVIEW_BYTES = 256 * 2**10
_MAX_TORCHSCRIPT_BYTES = 64 * 2**20
_MOST_SCRIPTS = 20
_ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError)


class ConsentDialog(QDialog):
    """Shows the program of a package and asks whether exactly this content may run.

    Args:
        package: The opened package.
        sha256: The hash of its program.
        source: Where the package came from.
    """

    def __init__(self, package: ModelPackage, sha256: str, source: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._sha256, self._name = sha256, package.definition.name
        self.setWindowTitle(tr("Allow the program of a model?"))
        self.once = QPushButton(tr("Allow this time"))
        self.always = QPushButton(tr("Always allow exactly this content"))
        self.buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel)
        self.files = _file_list(package)
        self.preview = _preview(package)
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


def _file_list(package: ModelPackage) -> QTreeWidget:
    tree = QTreeWidget()
    tree.setRootIsDecorated(False)
    tree.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
    tree.setHeaderLabels([tr("File"), tr("Size")])
    tree.header().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
    tree.header().setStretchLastSection(False)
    for file in program_files(package):
        item = QTreeWidgetItem([to_plain(file.name), size_text(file.size)])
        item.setTextAlignment(1, Qt.AlignmentFlag.AlignRight)
        tree.addTopLevelItem(item)
    return tree


def _preview(package: ModelPackage) -> QPlainTextEdit:
    edit = QPlainTextEdit()
    edit.setReadOnly(True)
    edit.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
    edit.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
    edit.setPlainText(program_text(package))
    return edit


def program_text(package: ModelPackage) -> str:
    """Give the start of the main file as text in which nothing hides."""
    try:
        with package.members.open(package.find(package.definition.program)) as stream:
            start = stream.read(MAX_PREVIEW_BYTES + 1)
            if start.startswith(b"PK\x03\x04"):
                return _visible(_script_text(start + stream.read(_MAX_TORCHSCRIPT_BYTES)))
    except (InferenceError, *_ARCHIVE_ERRORS) as error:
        return tr("The file cannot be shown: {error}").format(error=to_plain(error))
    text = _visible(start[:MAX_PREVIEW_BYTES].decode("utf-8", "replace"))
    rest = tr("The file goes on; what follows is not shown here.")
    return f"{text}\n\n\u2026 {rest}" if len(start) > MAX_PREVIEW_BYTES else text


def _script_text(data: bytes) -> str:
    """Give the source texts in a TorchScript file, a zip archive."""
    if len(data) > _MAX_TORCHSCRIPT_BYTES:
        return tr("A compiled network (TorchScript), too large to be shown.")
    parts, left = [tr("A compiled network (TorchScript). The code in it:")], MAX_PREVIEW_BYTES
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        scripts = [info for info in archive.infolist() if info.filename.endswith(".py")]
        for info in scripts[:_MOST_SCRIPTS]:
            with archive.open(info) as stream:
                text = stream.read(left).decode("utf-8", "replace")
            left -= len(text)
            parts += [f"# {info.filename}", text]
    return "\n\n".join(parts)


def _visible(text: str) -> str:
    """Write out characters that change how the others are read: what is shown is what runs."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")  # Python ends a line, and a comment, at each of them
    return "".join(character if _is_plain(character) else f"\\u{{{ord(character):x}}}" for character in lines)


def _is_plain(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
