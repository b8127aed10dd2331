"""What must be set before anything imports `huggingface_hub`, which reads these variables once, at its import.

Xet off: a local Hub speaks LFS only. A fresh `HF_HOME` and no `HF_TOKEN`: the developer's cache and token stay out.
tiktoken's cache is a fresh folder as well, filled from the `offline` packages: nothing is written to the machine.
"""

import atexit
import os
import shutil
import tempfile

HF_HOME = tempfile.mkdtemp(prefix="shardkit-tests-hf-")
VOCABULARIES = tempfile.mkdtemp(prefix="shardkit-tests-tiktoken-")
for folder in (HF_HOME, VOCABULARIES):
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
for name in (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
):
    os.environ.pop(name, None)
os.environ |= {
    "HF_HOME": HF_HOME,
    "TIKTOKEN_CACHE_DIR": VOCABULARIES,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}
