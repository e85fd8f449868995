"""Unpickles files of strangers without importing or calling anything: every class becomes an inert stand-in."""

import io
import pickle
import pickletools
from typing import Any, ClassVar, NamedTuple

MAX_BYTES = 2 << 20
"""Largest pickle. Each byte of a forged one can make an object of 200 bytes. A ResNet and a UNet take 0.1 MB."""

MAX_NAMES = 1000
"""Most classes that a pickle may name. Honest ones name some twenty."""


class Inert(dict):
    """An object of a class that is not imported. As a dict, it holds the items that the pickle gives it.

    kind: name of the class. arguments: of its constructor. state: what the pickle says its attributes are.
    """

    kind: ClassVar[str] = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> "Inert":
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __init__(self, *arguments: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Stored(NamedTuple):
    """Numbers outside the pickle: name of the storage's class in torch, name of the part of the zip file, how many."""

    kind: str
    part: str
    n_values: int


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._classes: dict[str, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> type[Inert]:
        """A stand-in, whatever the name is."""
        kind = f"{module}.{name}"
        if kind not in self._classes:
            if len(self._classes) == MAX_NAMES:
                raise pickle.UnpicklingError(f"it names more than {MAX_NAMES} classes")
            self._classes[kind] = type("Inert", (Inert,), {"kind": kind})
        return self._classes[kind]

    def persistent_load(self, pid: Any) -> Stored:
        match pid:
            case ("storage", type() as storage, str() as part, str(), int() as n_values) if issubclass(storage, Inert):
                return Stored(storage.kind, part, n_values)
        raise pickle.UnpicklingError("it refers to something that is no storage of torch")


def load(content: bytes) -> Any:
    """The value of a pickle, of plain values, `Inert` and `Stored`. Raises ValueError for a damaged one.

    The memory it takes is in proportion to the length of the pickle.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"its pickle has {len(content):,} bytes, expected at most {MAX_BYTES:,}")
    try:
        for operation, argument, _ in pickletools.genops(content):
            # The unpickler makes room for all numbers up to that of an entry, and for a length before it reads.
            if "PUT" in operation.name and not 0 <= int(str(argument)) <= len(content):
                raise ValueError(f"it numbers an entry {argument}")
        return _Unpickler(content).load()
    except MemoryError:
        raise
    except Exception as error:  # unpickling raises whatever the contents make of it
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"its pickle is damaged: {reason:.200}") from None


def as_bytes(node: Any) -> bytes | None:
    """Bytes in a pickle of protocol 2, which has them as a text and its encoding; None for anything else."""
    match node:
        case bytes():
            return node
        case Inert(kind="_codecs.encode", arguments=(str() as text, "latin1" | "latin-1")):
            return text.encode("latin-1", errors="replace")
    return None
