"""Checks the plugin's zip as the QGIS plugin site does: its structure, then bandit and detect-secrets on what it holds.

The site refuses a version with any finding of an enabled rule. Source: validator.py, security_scanner.py and the
*_rules.json of qgis/QGIS-Plugins-Website, July 2026.
"""

from __future__ import annotations

import argparse
import configparser
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 25_000_000
REQUIRED_FILES = ("__init__.py", "metadata.txt", "LICENSE")
REQUIRED_KEYS = (
    *("name", "description", "version", "qgisMinimumVersion", "author", "email", "about", "tracker", "repository"),
    "hasProcessingProvider",
)
ADDRESS_KEYS = ("tracker", "repository", "homepage")
FORBIDDEN_PARTS = {"__MACOSX", ".git", "__pycache__", ".."}
BINARIES = (".pyc", ".exe", ".dll", ".so", ".dylib", ".bat", ".sh")
BANDIT_TESTS = """
    B101 B102 B103 B104 B105 B106 B107 B108 B110 B111 B112 B113 B201 B202 B301 B302 B303 B304 B305 B306 B307 B308
    B310 B311 B312 B313 B314 B315 B316 B317 B318 B319 B320 B321 B323 B324 B401 B402 B403 B405 B406 B407 B408 B409
    B412 B413 B501 B502 B503 B504 B505 B506 B507 B508 B509 B601 B602 B603 B604 B605 B606 B607 B608 B609 B610 B611
    B612 B613 B614 B615 B701 B702 B703 B704
""".split()
UNKNOWN_TO_BANDIT = {"B111", "B303", "B320"}
"""Rules of the site's list that newer versions of bandit no longer have; it stops when it is asked for one."""
DISABLED_DETECTORS = ("IPPublicDetector",)


def main() -> int:
    """Print what is wrong; 0 when nothing is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="?", type=Path, help="the zip; the newest build/kestrel-*.zip when left out")
    package = parser.parse_args().package or newest_package()
    findings = check_structure(package)
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(package) as archive:
            archive.extractall(folder)
        findings += run_bandit(Path(folder)) + run_detect_secrets(Path(folder))
    for finding in findings:
        print(finding)
    print(f"{package.name}: {f'{len(findings)} findings' if findings else 'nothing that the plugin site would refuse'}")
    return 1 if findings else 0


def newest_package() -> Path:
    """Give the zip that was made last."""
    packages = sorted((ROOT / "build").glob("kestrel-*.zip"), key=lambda path: path.stat().st_mtime)
    if not packages:
        sys.exit("There is no build/kestrel-*.zip: run `make package`")
    return packages[-1]


def check_structure(package: Path) -> list[str]:
    """Check size, names and metadata; one text for each thing that is wrong."""
    findings = []
    if package.stat().st_size > MAX_BYTES:
        findings.append(f"the zip is larger than {MAX_BYTES / 1e6:.0f} MB")
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
        if archive.testzip():
            findings.append(f"{archive.testzip()} is damaged")
        for name in names:
            parts = PurePosixPath(name).parts
            if name.startswith("/") or "\\" in name or FORBIDDEN_PARTS & set(parts) or name.endswith(BINARIES):
                findings.append(f"{name} must not be in the zip")
            if "tests" in parts:
                findings.append(f"{name}: tests do not belong in the zip")
        folders = {name.split("/")[0] for name in names}
        if len(folders) != 1 or not next(iter(folders)).isidentifier():
            return [*findings, f"the zip must hold one folder named like a Python module, not {sorted(folders)}"]
        folder = folders.pop()
        missing = [name for name in REQUIRED_FILES if f"{folder}/{name}" not in names]
        findings += [f"{folder}/{name} is missing" for name in missing]
        if "metadata.txt" not in missing:
            findings += check_metadata(archive.read(f"{folder}/metadata.txt").decode("utf-8"))
    return findings


def check_metadata(text: str) -> list[str]:
    """Check metadata.txt; one text for each thing that is wrong."""
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text)
    general = dict(parser["general"]) if parser.has_section("general") else {}
    findings = [f"metadata.txt has no {key}" for key in REQUIRED_KEYS if not general.get(key)]
    if "/" in general.get("author", ""):
        findings.append("the author in metadata.txt must not contain a slash")
    # Whether they answer is for the site to ask: this check works without a network.
    addresses = [key for key in ADDRESS_KEYS if not re.match(r"https?://[^/\s]+", general.get(key, ""))]
    return findings + [f"{key} in metadata.txt is no web address" for key in addresses]


def run_bandit(folder: Path) -> list[str]:
    """Run bandit with the site's rules; `# nosec B603` with a reason is honoured there, too."""
    tests = ",".join(sorted(set(BANDIT_TESTS) - UNKNOWN_TO_BANDIT))
    command = [sys.executable, "-m", "bandit", "-r", ".", "-f", "json", "--quiet", "-t", tests]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        sys.exit(f"bandit failed: {done.stderr}")
    report = json.loads(done.stdout)
    return [
        *(
            f"{item['filename']}:{item['line_number']}: {item['test_id']} {item['issue_text']}"
            for item in report["results"]
        ),
        *(f"{item['filename']}: bandit: {item['reason']}" for item in report["errors"]),
    ]


def run_detect_secrets(folder: Path) -> list[str]:
    """Run detect-secrets as the site does."""
    command = [sys.executable, "-m", "detect_secrets", "scan", "--all-files", "--exclude-files", r"metadata\.txt"]
    disabled = [argument for name in DISABLED_DETECTORS for argument in ("--disable-plugin", name)]
    done = subprocess.run([*command, *disabled, "."], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"detect-secrets failed: {done.stderr}")
    results = json.loads(done.stdout)["results"]
    return [f"{path}:{item['line_number']}: {item['type']}" for path, found in results.items() for item in found]


if __name__ == "__main__":
    sys.exit(main())
