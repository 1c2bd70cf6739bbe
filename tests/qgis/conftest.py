"""A headless QGIS in the test process, in a profile of its own, with Kestrel's provider registered."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["QT_QPA_PLATFORM"] = "offscreen"

from qgis.core import QgsApplication, QgsAuthMethodConfig, QgsProject, QgsSettings
from qgis.PyQt.QtCore import QCoreApplication, QSettings


@pytest.fixture(scope="session", autouse=True)
def qgis_app(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[QgsApplication]:
    """QGIS with Processing initialised, started once."""
    folder = tmp_path_factory.mktemp("qgis")
    os.environ["QGIS_CUSTOM_CONFIG_PATH"] = str(folder)
    # As QGIS's own main() does: without the names, settings go to the user's home.
    QCoreApplication.setOrganizationName(QgsApplication.QGIS_ORGANIZATION_NAME)
    QCoreApplication.setApplicationName(QgsApplication.QGIS_APPLICATION_NAME)
    QSettings.setDefaultFormat(QSettings.Format.IniFormat)
    QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, str(folder / "profiles" / "default"))
    app = QgsApplication([], True)
    app.initQgis()
    sys.path.append(str(Path(QgsApplication.pkgDataPath()) / "python" / "plugins"))
    from processing.core.Processing import Processing

    Processing.initialize()
    interpreter = repository / "build" / "env" / "inference" / "bin" / "python"
    QgsSettings().setValue("kestrel/interpreter", str(interpreter))
    yield app
    QgsProject.instance().clear()
    gc.collect()  # widgets that hang on one another in a circle must not outlive the application
    app.exitQgis()


@pytest.fixture(scope="session", autouse=True)
def provider(qgis_app: QgsApplication) -> Any:
    """Kestrel's provider, registered as the plugin does it."""
    from kestrel.processing_provider.provider import KestrelProvider

    provider = KestrelProvider()
    assert qgis_app.processingRegistry().addProvider(provider)
    return provider


@pytest.fixture(scope="session")
def sign_with(qgis_app: QgsApplication) -> Callable[..., str]:
    """Store an authentication configuration: its method and values; gives its id. The store is opened once."""
    manager = qgis_app.authManager()
    assert manager.setMasterPassword("of the tests", True)

    def store(method: str, **values: str) -> str:
        config = QgsAuthMethodConfig()
        config.setName(method)
        config.setMethod(method)
        for key, value in values.items():
            config.setConfig(key.replace("_", "-"), value)
        done = manager.storeAuthenticationConfig(config)
        assert done[0] if isinstance(done, tuple) else done
        return str(config.id())

    return store


@pytest.fixture(scope="session")
def widgets(qgis_app: QgsApplication) -> Iterator[None]:
    """Kestrel's widget factories, registered as the plugin does it; once, for QGIS does not bear them a second time."""
    from qgis.gui import QgsGui

    from kestrel.ui.factories import widget_factories

    made = widget_factories()
    for factory in made:
        QgsGui.processingGuiRegistry().addParameterWidgetFactory(factory)
    yield
    for factory in made:
        QgsGui.processingGuiRegistry().removeParameterWidgetFactory(factory)


@pytest.fixture(autouse=True)
def empty_project() -> Iterator[QgsProject]:
    """A project without layers for each test."""
    project = QgsProject.instance()
    project.clear()
    yield project
    project.clear()
