"""Camera images as H.264 video: one of Foxglove's CompressedVideo messages per image, and back.

Images come in short groups. The first of a group, its key frame, stands alone; each other needs
those before it, back to there. So a single image costs half a group to decode, and the next one
itself alone.

Colours are kept as JPEG keeps them, BT.601 over the full range. OpenCV converts them: libswscale
rounds down, by more than a grey level. Of 4 pixels one colour difference is stored, which Foxglove
and browsers need; an image with an odd side, which that cannot store, keeps all of them.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cosmos_policy_ros.bags.index import IndexedTopic
from cosmos_policy_ros.bags.jpeg import SUFFIX as JPEG_SUFFIX
from cosmos_policy_ros.bags.mcap_file import VERIFY
from cosmos_policy_ros.core.errors import RolloutError
from cosmos_policy_ros.core.untrusted import UnreadableError, reading
from cosmos_policy_ros.rig.spec import MAX_SIDE, RigSpec

VIDEO = "foxglove_msgs/msg/CompressedVideo"
FORMAT = "h264"
SUFFIX = "/foxglove"  # image_transport's for this message
_LINE = "=" * 80
DEFINITION = f"""\
builtin_interfaces/Time timestamp
string frame_id
uint8[] data
string format

{_LINE}
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""

# Of x264: slower presets gain a twentieth of the size for twice the time and more. "fastdecode"
# costs an eighth of the size and halves what each reading takes; with "zerolatency" each image is
# out before the next one is in.
_PRESET, _TUNE = "veryfast", "zerolatency,fastdecode"
# Names by number in H.264: BT.601's colours, as JPEG has them, over the full range.
_BT470BG, _SMPTE170M, _FULL_RANGE = 5, 6, 2
_CHROMA_CENTRE = 1  # colour differences lie between the pixels that share them
_SUBSAMPLED, _WHOLE = ("yuv420p", "yuvj420p"), ("yuv444p", "yuvj444p")

# A remark of ours before each image. No zeros in it, so that nothing of it must be escaped.
_REMARK = bytes.fromhex("c6f1a2b49d3e4f578a6b7c8d9e1fa2b3")
_REMARK_WITHIN = 4096  # bytes from a message's begin
_NAL = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)
_SLICE, _KEY_SLICE, _SEI, _USER_DATA = 1, 5, 6, 5

MAX_GROUP = 1000
"""Images that are decoded at most to see one."""
_GROUP_BYTES = 64 << 20  # of decoded images kept per thread; ten of 640x480 take 4.6 MB


def video_topic(name: str) -> str:
    """Return the topic of the video made of a camera's images, raw or compressed."""
    return name.removesuffix(JPEG_SUFFIX) + SUFFIX


def rig_of_video(rig: RigSpec) -> RigSpec:
    """Return the rig as a bag shows it whose camera images became video."""
    cameras = tuple(
        replace(camera, topic=video_topic(camera.topic), transport="compressed")
        for camera in rig.cameras
    )
    return replace(rig, cameras=cameras)


def require_encoder() -> None:
    """Raise RolloutError where PyAV is missing, or was built without x264."""
    try:
        import av

        av.CodecContext.create("libx264", "w")
    except Exception as error:
        raise RolloutError(
            f"PyAV with libx264, which makes the video, is not here ({type(error).__name__}); "
            f"'pip install av' brings both"
        ) from error


class VideoEncoder:
    """Makes the data of CompressedVideo messages from one camera's images, in their order."""

    def __init__(self, crf: int, group: int) -> None:
        """Begin.

        Args:
            crf: x264's constant rate factor; less is better and larger.
            group: images from one key frame to the next.
        """
        self._options = {"crf": str(crf), "g": str(group), "bf": "0", "sc_threshold": "0"}
        self._size: tuple[int, ...] = ()
        self._codec: Any = None
        self._count = 0

    def encode(self, rgb: NDArray[np.uint8], fingerprint: int) -> bytes:
        """Return the data of an (H, W, 3) image; one of another size begins a new group.

        Args:
            rgb: the image.
            fingerprint: of its source message, by ``rig.observation``. Images that a frozen camera
                repeats differ once they are video, and so it could not be told any more.
        """
        import av  # some tenth of a second, and most commands see no video

        planes, form = _to_planes(rgb)
        if rgb.shape != self._size:
            self._open(rgb.shape, form)
        frame = av.VideoFrame.from_ndarray(planes, format=form)
        frame.pts = self._count
        self._count += 1
        packets = self._codec.encode(frame)
        assert len(packets) == 1, "x264 holds nothing back with zerolatency"
        return _with_remark(bytes(packets[0]), fingerprint)

    def _open(self, shape: tuple[int, ...], form: str) -> None:
        import av

        codec: Any = av.CodecContext.create("libx264", "w")
        codec.height, codec.width = shape[:2]
        codec.pix_fmt, codec.time_base = form, Fraction(1, 30)  # of no effect but to be asked for
        codec.thread_count = 1  # the same file on every machine, and one core of it
        codec.color_range, codec.colorspace = _FULL_RANGE, _BT470BG
        codec.color_primaries, codec.color_trc = _BT470BG, _SMPTE170M
        x264 = {"preset": _PRESET, "tune": _TUNE, "x264-params": f"chromaloc={_CHROMA_CENTRE}"}
        codec.options = {**self._options, **x264}
        codec.open()
        self._codec, self._size = codec, shape


class VideoDecoder:
    """Decodes one group, from its key frame on.

    Attributes:
        frames: decoded so far.
    """

    def __init__(self) -> None:
        import av

        self.frames: list[Any] = []
        # One thread: a forked process has none of its parent's.
        self._codec: Any = av.CodecContext.create("h264", "r")
        self._codec.thread_count = 1
        self._codec.options = {"err_detect": "explode", "max_pixels": str(MAX_SIDE**2)}

    def add(self, data: bytes) -> None:
        """Decode the next message's data. Raises UnreadableError, or what PyAV raises."""
        import av

        found = self._codec.decode(av.Packet(data))
        if len(found) != 1:
            raise UnreadableError(f"a message of video holds {len(found)} images, expected one")
        self.frames += found

    def image(self, number: int) -> NDArray[np.uint8]:
        """Return a decoded frame as (H, W, 3) RGB."""
        return _to_rgb(self.frames[number])

    @property
    def size(self) -> int:
        """Bytes of all decoded frames."""
        of_one = sum(int(plane.buffer_size) for frame in self.frames[:1] for plane in frame.planes)
        return of_one * len(self.frames)


def is_key(data: bytes) -> bool:
    """Return whether a message's data begin a group."""
    return _first_slice(data)[1] == _KEY_SLICE


def fingerprint_of(data: bytes) -> int:
    """Return the fingerprint of the message that an image was made from."""
    at = data.find(_REMARK, 0, _REMARK_WITHIN)
    if at < 0:
        return zlib.crc32(data)  # another program's video
    try:
        return int(data[at + len(_REMARK) :][:8], 16)
    except ValueError:
        raise UnreadableError("the remark on an image's source is no number") from None


@dataclass(frozen=True)
class VideoImage:
    """An image of a video; decoded when its pixels are asked for.

    Attributes:
        fingerprint: of the message that it was made from.
    """

    fingerprint: int
    _frames: VideoFrames
    _index: int

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """(H, W, 3) RGB; raises RolloutError where the bag is damaged."""
        return self._frames.pixels(self._index)


class VideoFrames:
    """The images of a video topic in any order, each the same in every order.

    Each thread keeps the groups that it last looked at, 64 MiB of them over all topics. May be
    pickled, and forked.
    """

    def __init__(self, topic: IndexedTopic) -> None:
        """Read nothing yet."""
        self._topic = topic
        places = topic.places
        # Images were encoded in the order in which they stand in the file; header stamps may be in
        # another one.
        self._order = np.lexsort((places[:, 3], places[:, 1], places[:, 0]))
        self._rank = np.argsort(self._order)
        first = places[self._order[0]].tolist() if len(topic) else []
        self._name = (topic.files, *first)

    def image(self, index: int) -> VideoImage:
        """Return an image by its place in the order of header stamps."""
        with self._reading(index):
            return VideoImage(fingerprint_of(self._data(index)), self, index)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Return (H, W, 3) RGB. Raises RolloutError where the bag is damaged."""
        with self._reading(index):
            groups, wanted = _groups(), int(self._rank[index])
            pending: list[bytes] = []
            at = wanted
            while (key := self._decoded(groups, at)) is None:
                pending.append(self._data(int(self._order[at])))
                if is_key(pending[-1]):
                    key = (self._name, at)
                    groups[key] = VideoDecoder()
                    break
                at -= 1
                if at < 0 or len(pending) == MAX_GROUP:
                    raise UnreadableError(f"the {len(pending)} images before it have no key frame")
            group = groups.pop(key)  # one that fails is not looked at again
            for data in reversed(pending):
                group.add(data)
            groups[key] = group
            while len(groups) > 1 and sum(each.size for each in groups.values()) > _GROUP_BYTES:
                groups.popitem(last=False)
            return group.image(wanted - key[1])

    def _decoded(self, groups: _Groups, at: int) -> _Key | None:
        """Return the key of the group that has an image decoded."""
        for key, group in groups.items():
            if key[0] == self._name and key[1] <= at < key[1] + len(group.frames):
                return key
        return None

    def _data(self, index: int) -> bytes:
        return bytes(self._topic.read(index).data)

    def _reading(self, index: int) -> Any:
        where = f"{self._topic.files[0].parent}: the video at {self._topic.stamps_ns[index]} ns"
        return reading(where, "H.264", RolloutError, VERIFY)


def image_reader(topic: IndexedTopic) -> Callable[[int], Any]:
    """Return what gives a camera's images by their place, as ``rig.images`` decodes them."""
    return VideoFrames(topic).image if topic.msgtype == VIDEO else topic.read


_Key = tuple[tuple[Any, ...], int]  # a topic, and the place of a key frame in its order
_Groups = OrderedDict[_Key, VideoDecoder]
_of_thread = threading.local()


def _groups() -> _Groups:
    """Return this thread's groups, the one last looked at at the end."""
    if not hasattr(_of_thread, "groups"):
        _of_thread.groups = OrderedDict()
    groups: _Groups = _of_thread.groups
    return groups


def _first_slice(data: bytes) -> tuple[int, int]:
    """Return where the image itself begins behind all that is said of it, and its kind."""
    for found in _NAL.finditer(data):
        kind = found[1][0] & 31
        if kind in (_SLICE, _KEY_SLICE):
            return found.start(), kind
    raise UnreadableError("a message of video holds no image")


def _with_remark(data: bytes, fingerprint: int) -> bytes:
    """Return an image's data with its source's fingerprint, which decoders pass over."""
    content = _REMARK + f"{fingerprint:08x}".encode()
    remark = b"\x00\x00\x01" + bytes([_SEI, _USER_DATA, len(content)]) + content + b"\x80"
    at, _ = _first_slice(data)
    return data[:at] + remark + data[at:]


def _to_planes(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], str]:
    """Return luma and both colour differences as PyAV takes them, and the name of the form."""
    luma, red, blue = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb))
    height, width = luma.shape
    if height % 2 or width % 2:
        return np.stack([luma, blue, red]).astype(np.uint8, copy=False), _WHOLE[0]
    half = width // 2, height // 2
    blue, red = (cv2.resize(each, half, interpolation=cv2.INTER_AREA) for each in (blue, red))
    stacked = np.concatenate([luma.ravel(), blue.ravel(), red.ravel()])
    return stacked.reshape(-1, width).astype(np.uint8, copy=False), _SUBSAMPLED[0]


def _to_rgb(frame: Any) -> NDArray[np.uint8]:
    form, width, height = frame.format.name, frame.width, frame.height
    if form not in (*_SUBSAMPLED, *_WHOLE) or frame.color_range != _FULL_RANGE:
        raise UnreadableError(f"video of colours '{form}', which are not those of a compaction")
    planes = frame.to_ndarray()
    if form in _WHOLE:
        luma, blue, red = planes
    else:
        luma = planes[:height]
        halves = planes[height:].reshape(2, height // 2, width // 2)
        blue, red = (
            cv2.resize(each, (width, height), interpolation=cv2.INTER_LINEAR) for each in halves
        )
    return np.asarray(cv2.cvtColor(cv2.merge([luma, red, blue]), cv2.COLOR_YCrCb2RGB), np.uint8)
