"""Reading XML so that nothing is overlooked.

An `Element` remembers which attributes, children and text were asked for. `finish` refuses the first that was not, by
path and line: an element that Ferry does not carry is an error, never a silent drop.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, TypeVar

from lxml import etree

from agent.vm import rules
from common.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_XML_BYTES = 1024 * 1024
_NUMBER = re.compile(r"0x[0-9a-fA-F]{1,16}|0|[1-9][0-9]{0,17}")
_T = TypeVar("_T")


class NotCarried(InvalidRequest):
    """The XML asks for something that Ferry does not build."""

    default_reason = "ELEMENT_NOT_CARRIED"


def parse_xml(xml: bytes, origin: str) -> Element:
    """Parse a document into its root element.

    Document types are refused altogether, so there are no entities to expand and nothing outside is read. The text has
    to be UTF-8, whatever its declaration says, so that nothing hides in another encoding.

    Raises:
        InvalidRequest: it is no XML, or longer than 1 MiB, or has a document type.
    """
    if len(xml) > MAX_XML_BYTES:
        raise InvalidRequest(f"{origin}: {len(xml)} bytes of XML, {MAX_XML_BYTES} is the most", reason="XML_TOO_BIG", origin=origin)
    if b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:
        raise InvalidRequest(f"{origin}: document types and entities are refused", reason="XML_HAS_DOCTYPE", origin=origin)
    parser = etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(xml, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise InvalidRequest(f"{origin}: broken XML: {error}", reason="XML_BROKEN", origin=origin) from error
    return Element(root, f"/{_shown(root)}", origin)


class Element:
    """One element that is being read."""

    def __init__(self, node: etree._Element, path: str, origin: str) -> None:
        self._node = node
        self._path = path
        self._origin = origin
        self._open_attributes = {str(name): str(value) for name, value in node.attrib.items()}
        self._open_children = list(node)
        self._text_is_open = True

    @property
    def tag(self) -> str:
        """Name of the element."""
        return _shown(self._node)

    def attribute(self, name: str) -> str | None:
        """Take an attribute; None when it is not there."""
        value = self._open_attributes.pop(name, None)
        return None if value is None else str(value)

    def peek(self, name: str) -> str | None:
        """Look at an attribute that is taken elsewhere."""
        return self._open_attributes.get(name)

    def get_attribute(self, name: str) -> str:
        """Take an attribute that has to be there."""
        value = self.attribute(name)
        if value is None:
            raise self.invalid(f"attribute {name} is missing")
        return value

    def choice(self, name: str, choices: Mapping[str, _T]) -> _T | None:
        """Take an attribute that has one of few values, each with its meaning; None when it is not there.

        Raises:
            NotCarried: it has another value.
        """
        value = self.attribute(name)
        return None if value is None else self._choose(f"{self._path}/@{name}", value, choices)

    def text_choice(self, choices: Mapping[str, _T]) -> _T:
        """Take the text, which has to be one of few."""
        return self._choose(self._path, self.text(), choices)

    def switch(self, name: str = "state") -> bool | None:
        """Take an attribute that is `on` or `off`."""
        return self.choice(name, {"on": True, "off": False})

    def accept(self, name: str, *values: str) -> None:
        """Take an attribute that only confirms what is so anyway: one of `values`, or any value when there are none."""
        value = self.attribute(name)
        if value is not None and values and value not in values:
            raise self.attribute_not_carried(name, value)

    def text(self) -> str:
        """Take the text, without outer blanks."""
        self._text_is_open = False
        return (self._node.text or "").strip()

    def checked_text(self, what: str) -> str:
        """Take the text of an element that has nothing else, without control characters."""
        text = self.text()
        self.finish()
        with self.located():
            rules.check_text(text, what)
        return text

    def child(self, name: str) -> Element | None:
        """Take the only child of a name; None when there is none."""
        children = self.children(name)
        if len(children) > 1:
            raise children[1].invalid("is given twice")
        return children[0] if children else None

    def get_child(self, name: str) -> Element:
        """Take the only child of a name, which has to be there."""
        child = self.child(name)
        if child is None:
            raise self.invalid(f"element {name} is missing")
        return child

    def children(self, name: str) -> list[Element]:
        """Take all children of a name, in order."""
        found = [node for node in self._open_children if node.tag == name]
        self._open_children = [node for node in self._open_children if node.tag != name]
        several = len(found) > 1
        return [
            Element(node, f"{self._path}/{name}" + (f"[{number}]" if several else ""), self._origin)
            for number, node in enumerate(found, start=1)
        ]

    def child_text(self, name: str) -> str | None:
        """Take the text of the only child of a name, which has nothing else in it."""
        child = self.child(name)
        if child is None:
            return None
        text = child.text()
        child.finish()
        return text

    def has(self, name: str) -> bool:
        """Take an empty child and say whether it was there."""
        child = self.child(name)
        if child is not None:
            child.finish()
        return child is not None

    def ignore(self, name: str) -> None:
        """Take children that are irrelevant to the guest, with all that is in them."""
        self.children(name)

    def finish(self) -> None:
        """Refuse what nobody asked for.

        Raises:
            NotCarried: an attribute, a child or text is left.
        """
        for name, value in self._open_attributes.items():
            raise self.attribute_not_carried(name, str(value))
        for node in self._open_children:
            raise Element(node, f"{self._path}/{_shown(node)}", self._origin).not_carried()
        texts = [node.tail for node in self._node] + ([self._node.text] if self._text_is_open else [])
        for text in texts:
            if text is not None and text.strip():
                raise self.invalid(f"stray text {text.strip()[:40]!r}")

    def not_carried(self, path: str | None = None, value: str | None = None) -> NotCarried:
        """Make the error that says that this is not carried."""
        path = path or self._path
        shown = path if value is None else f"{path} {value[:80]!r}"
        return NotCarried(f"{self._origin}:{self._node.sourceline}: {shown} is not carried", path=path, line=self._node.sourceline)

    def attribute_not_carried(self, name: str, value: str) -> NotCarried:
        """Make the error that says that an attribute, or this value of it, is not carried."""
        return self.not_carried(f"{self._path}/@{name}", value)

    def invalid(self, text: str) -> InvalidRequest:
        """Make the error that says what is wrong with this element."""
        return InvalidRequest(
            f"{self._origin}:{self._node.sourceline}: {self._path}: {text}",
            reason="VALUE_INVALID",
            path=self._path,
            line=self._node.sourceline,
        )

    @contextlib.contextmanager
    def located(self) -> Iterator[None]:
        """Give errors of the rules inside this block the path and line of this element."""
        try:
            yield
        except InvalidRequest as error:
            if "line" in error.facts:
                raise
            raise self.invalid(error.text) from error

    def number(self, text: str) -> int:
        """Read a whole number, decimal or hexadecimal with `0x`."""
        if not _NUMBER.fullmatch(text):
            raise self.invalid(f"{text[:40]!r} is not a whole number")
        return int(text, 0)

    def number_attribute(self, name: str) -> int | None:
        """Take an attribute that is a whole number; None when it is not there."""
        text = self.attribute(name)
        return None if text is None else self.number(text)

    def _choose(self, path: str, value: str, choices: Mapping[str, _T]) -> _T:
        if value not in choices:
            raise self.not_carried(path, value)
        return choices[value]


def _shown(node: etree._Element) -> str:
    name = etree.QName(node)
    if not name.namespace:
        return name.localname
    return f"{node.prefix}:{name.localname}" if node.prefix else f"{{{name.namespace}}}{name.localname}"
