"""Decoding within bounds: what a chunk unpacks to is compared with what its array declares, before it takes memory."""

import bz2
import gzip
import io
import lzma
import math
import os
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import zarr
from numcodecs.zstd import Zstd
from zarr.abc.codec import Codec
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.codecs import ShardingCodec
from zarr.codecs._v2 import V2Codec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, BufferPrototype, NDBuffer
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import register_pipeline
from zarr.storage import ZipStore

SLACK = 64
"""Bytes that checksums may add to a chunk."""

SHARD_ROW = 256
"""Bytes that a shard's index and the headers of compressors may add for each of its chunks."""

SAME_SIZE = ("bytes", "endian", "transpose", "shuffle", "bitround", "fletcher32", "crc32", "crc32c", "adler32",
             "jenkins_lookup3")  # fmt: skip
"""Codecs whose output is as large as their input, but for a checksum."""

RETYPING = {
    "astype": ("decode_dtype", "encode_dtype"),
    "delta": ("dtype", "astype"),
    "fixedscaleoffset": ("dtype", "astype"),
    "quantize": ("dtype", "astype"),
}
"""Codecs that change the type of each number -> the keys of its decoded and its encoded type."""


def _blosc(data: memoryview, limit: int) -> int:
    return int.from_bytes(data[4:8], "little")


def _lz4(data: memoryview, limit: int) -> int:
    return int.from_bytes(data[:4], "little")


def _zstd(data: memoryview, limit: int) -> int:
    """RFC 8878, section 3.1.1.1. A frame need not say its size."""
    head = data[4] if len(data) > 4 else 0
    single = head >> 5 & 1
    n_bytes = (single, 2, 4, 8)[head >> 6]
    start = 6 - single + (0, 1, 2, 4)[head & 3]
    if n_bytes:
        return int.from_bytes(data[start : start + n_bytes], "little") + (256 if n_bytes == 2 else 0)
    try:
        return len(Zstd().decode(data, out=np.empty(limit, np.uint8)))
    except RuntimeError as error:
        return limit + 1 if "too small" in str(error) else 0


def _zlib(data: memoryview, limit: int) -> int:
    return len(zlib.decompressobj().decompress(data, limit + 1))


def _streamed(open_file: Callable[[Any], Any]) -> Callable[[memoryview, int], int]:
    def size(data: memoryview, limit: int) -> int:
        with open_file(io.BytesIO(data)) as file:
            return len(file.read(limit + 1))

    return size


COMPRESSORS: dict[str, Callable[[memoryview, int], int]] = {
    "blosc": _blosc,
    "lz4": _lz4,
    "zstd": _zstd,
    "zlib": _zlib,
    "gzip": _streamed(lambda file: gzip.GzipFile(fileobj=file)),
    "bz2": _streamed(bz2.BZ2File),
    "lzma": _streamed(lzma.LZMAFile),
}
"""Compressor -> the number of bytes that `data` unpack to, or any number above `limit` if they are more. It takes no
more memory than `limit`, so what has no header with its size is unpacked twice."""


class BoundedPipeline(BatchedCodecPipeline):
    """zarr's own way to decode chunks, which refuses those that unpack to more than their array declares.

    It serves the whole process. Arrays whose codecs have no bound pass: `check_codecs` has refused those of our stores.
    """

    async def decode_batch(
        self, chunk_bytes_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[NDBuffer | None]:
        chunks = list(chunk_bytes_and_specs)
        for chunk, spec in chunks:
            if chunk is not None:
                _check(list(self), memoryview(chunk.to_bytes()), spec)
        return await super().decode_batch(chunks)


register_pipeline(BoundedPipeline)
zarr.config.set({"codec_pipeline.path": f"{BoundedPipeline.__module__}.{BoundedPipeline.__qualname__}"})


class BoundedZipStore(ZipStore):
    """Unpacks no more of a file than the directory of the zip declares. zarr's own unpacks a gigabyte at once."""

    def _get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if not self._is_open:
            self._sync_open()
        info = self._zf.NameToInfo.get(key)
        if info is None:
            return None
        start, end = 0, info.file_size
        if isinstance(byte_range, RangeByteRequest):
            start, end = byte_range.start, min(byte_range.end, end)
        elif isinstance(byte_range, OffsetByteRequest):
            start = byte_range.offset
        elif isinstance(byte_range, SuffixByteRequest):
            start = max(0, end - byte_range.suffix)
        with self._zf.open(info) as file:
            file.seek(start, os.SEEK_SET)
            return prototype.buffer.from_bytes(file.read(max(0, end - start)))


def check_codecs(metadata: Any) -> None:
    """Raises ValueError for codecs of an array whose output has no bound."""
    if metadata.zarr_format == 2:
        _encoded_bytes(_stages([V2Codec(metadata.filters, metadata.compressor)]), 1)
    else:
        _check_stages(metadata.codecs)


def _check_stages(codecs: Iterable[Codec]) -> None:
    codecs = list(codecs)
    _encoded_bytes(_stages(codecs), 1)
    for codec in codecs:
        if isinstance(codec, ShardingCodec):
            _check_stages(codec.codecs)
            _check_stages(codec.index_codecs)


def max_file_bytes(array: Any) -> int:
    """The largest file that a chunk of `array`, or a shard of them, can need: noise does not compress."""
    shape = getattr(array, "shards", None) or array.chunks
    inner = math.prod(shape) // max(1, math.prod(array.chunks))
    return 2 * math.prod(shape) * array.dtype.itemsize + SHARD_ROW * inner + (1 << 16)


def _check(codecs: list[Codec], data: memoryview, spec: ArraySpec) -> None:
    declared = math.prod(spec.shape) * spec.dtype.to_native_dtype().itemsize
    stages = _stages(codecs)
    try:
        limit = _encoded_bytes(stages, declared)
    except ValueError:
        return
    for codec in codecs:
        if isinstance(codec, ShardingCodec):
            limit += SHARD_ROW * math.prod(spec.shape) // math.prod(codec.chunk_shape)
    names = [name for name, _ in stages]
    if names[-1] == "crc32c" and len(data) > 4:
        data = data[:-4]
    for name in names:
        if name in COMPRESSORS and COMPRESSORS[name](data, limit) > limit:
            raise ValueError(f"it unpacks to more than {limit:,} bytes, but its array declares {declared:,}")


def _stages(codecs: Iterable[Codec]) -> list[tuple[str, dict[str, Any]]]:
    """(name, settings) of each codec, in the order of encoding."""
    stages = []
    for codec in codecs:
        if isinstance(codec, V2Codec):
            parts = [part.get_config() for part in (*(codec.filters or ()), codec.compressor) if part is not None]
            stages += [(part["id"], part) for part in parts]
        else:
            described: Any = codec.to_dict()
            stages.append((described["name"].removeprefix("numcodecs."), described.get("configuration") or {}))
    return stages or [("bytes", {})]


def _encoded_bytes(stages: list[tuple[str, dict[str, Any]]], declared: int) -> int:
    """The bytes that a compressor may unpack to, of a chunk of `declared` bytes.

    Raises ValueError unless the codecs are at most one compressor, last but for checksums, and at most one that changes
    types, because the outputs of several multiply.
    """
    names = [name for name, _ in stages]
    unknown = [
        name for name in names if name not in (*SAME_SIZE, *RETYPING, *COMPRESSORS, "packbits", "sharding_indexed")
    ]
    if unknown:
        raise ValueError(f"the codec {unknown[0]} may unpack to anything")
    compressors = [at for at, name in enumerate(names) if name in COMPRESSORS]
    if len(compressors) > 1 or (compressors and names[compressors[0] + 1 :] not in ([], ["crc32c"])):
        raise ValueError(f"the codecs {names} may unpack to anything: expected one compressor, after the others")
    ratios = [ratio for name, settings in stages if (ratio := _ratio(name, settings)) != 1]
    if len(ratios) > 1:
        raise ValueError(f"the codecs {names} change the size of numbers {len(ratios)} times, expected once")
    return int(declared * (ratios or [1])[0]) + SLACK


def _ratio(name: str, settings: dict[str, Any]) -> float:
    """Encoded bytes per decoded one, before compression."""
    if name == "packbits":
        return 1 / 8
    if name not in RETYPING:
        return 1.0
    decoded, encoded = (np.dtype(settings.get(key) or settings[RETYPING[name][0]]) for key in RETYPING[name])
    if decoded.kind not in "biuf" or encoded.kind not in "biuf":
        raise ValueError(f"the codec {name} makes {decoded} of {encoded}, expected numbers")
    return encoded.itemsize / decoded.itemsize
