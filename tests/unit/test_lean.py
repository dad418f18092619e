"""What no daemon needs is not loaded, and is there for whoever asks for it after all."""

import subprocess
import sys

SCRIPT = """
import xenstored.__main__
import trio

async def nothing():
    await trio.sleep(0)

trio.run(nothing)
with open("/proc/self/maps") as f:
    mapped = f.read()
print([name for name in ("libcrypto", "libbz2", "liblzma") if name in mapped])
import bz2, hmac, lzma, ssl
from ssl import SSLContext
print(isinstance(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), SSLContext))
print(bz2.decompress(bz2.compress(b"a")), lzma.decompress(lzma.compress(b"b")))
print(hmac.new(b"key", b"message", "md5").hexdigest())
print(hasattr(bz2, "nothing"))
"""


def test_modules_are_postponed_until_somebody_needs_them() -> None:
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["[]", "True", "b'a' b'b'", "4e4748e62b463521f6775fbf921234b5", "False"]
