"""The properties that can be measured, in the order of tables and page: one line each."""

from typing import TYPE_CHECKING

from pydantic import create_model

from ace.properties.base import Property
from ace.properties.colours import Colours
from ace.properties.composition import Composition
from ace.properties.correspondence import Correspondence
from ace.properties.cosegmentation import Cosegmentation
from ace.properties.decomposition import Decomposition
from ace.properties.explorer import Explorer
from ace.properties.interpolation import Interpolation
from ace.properties.labels import Labels
from ace.properties.retrieval import Retrieval
from ace.properties.separation import Separation
from ace.properties.symmetry import Symmetry
from shards.core.config import Section

PROPERTIES: tuple[Property, ...] = (
    Composition(),
    Decomposition(),
    Correspondence(),
    Colours(),
    Labels(),
    Retrieval(),
    Symmetry(),
    Separation(),
    Interpolation(),
    Cosegmentation(),
    Explorer(),
)


class PropertySections(Section):
    """The section of each property by its name; a property without one is not measured."""

    def chosen(self) -> list[tuple[Property, Section]]:
        """Return the properties that are measured, each with its section, in the order of the registry."""
        sections = [(item, getattr(self, item.name)) for item in PROPERTIES]
        return [(item, section) for item, section in sections if section is not None]


if TYPE_CHECKING:
    PropertiesParams = PropertySections
else:
    PropertiesParams = create_model(
        "PropertiesParams",
        __base__=PropertySections,
        **{item.name: (item.params | None, None) for item in PROPERTIES},
    )
