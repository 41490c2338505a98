"""Our own limits. Each is checked at the door, before anything is stored, charged or queued."""

from __future__ import annotations

from config import env
from config.settings.base import DATA_DIR

MIN_SIDE_PX, MAX_SIDE_PX = 16, 8192
MAX_PIXELS = env.integer("MAX_PIXELS", 16_777_216, minimum=4096, maximum=2**28)
"""Of one picture; the default is 4096 x 4096."""
MAX_INPUT_PIXELS = env.integer("MAX_INPUT_PIXELS", 67_108_864, minimum=4096, maximum=2**28)
"""Of a picture a caller sends."""
MAX_INPUT_SIDE_PX = 16_384
MAX_STEPS = 1000
MAX_BATCH_SIZE = 1000
MAX_IMAGES_PER_JOB = env.integer("MAX_IMAGES_PER_JOB", 20_000, minimum=1, maximum=1_000_000)
MAX_SYNC_IMAGES = 100
"""A synchronous answer holds its pictures in memory as base64."""
MAX_PROMPT_BYTES = 16_384

LEASE_SECONDS = env.integer("LEASE_SECONDS", 30, minimum=2, maximum=3600)
"""A worker that stops renewing loses its images after this long."""
LEASE_RENEWAL_SECONDS = 1
"""One UPDATE per running micro-batch: it renews, publishes the step and learns of a cancel."""
STALL_SECONDS = 300
"""Without a finished step, a loaded file or a delivered image for this long, the lease is no longer renewed."""
SHUTDOWN_GRACE_SECONDS = 10
"""What runs at SIGTERM may finish within this; then its leases are given back."""
THUMBNAIL_CACHE_BYTES = 2 * 1024**3
"""Small pictures of the gallery on a web server's disk; about 10 KB each."""
THUMBNAIL_SECONDS = 30 * 86_400
"""One that nobody looked at for so long is removed."""
WORKER_POLL_SECONDS = 5
WORKER_DEAD_AFTER_SECONDS = 30
MAX_ATTEMPTS = 3
"""Of one image, before it fails with the last reason."""
MAX_MICROBATCH = env.integer("MAX_MICROBATCH", 16, minimum=1, maximum=256)
"""Pictures of one pass at most; how many are best below that, workers learn."""

PROMPT_EXPANSION = env.boolean("PROMPT_EXPANSION", False)
"""Whether language models write prompts here; each takes the card for some seconds, which nobody pays for."""

IDEMPOTENCY_DAYS = 7
WORKER_POOL = env.text("WORKER_POOL", "default")
WORKER_NAME = env.text("WORKER_NAME", "")
"""Empty: machine, pool and process. One that is given is the same after a restart; no two processes may share it."""
WORKER_CACHE_DIR = DATA_DIR / "worker-cache"
WORKER_CACHE_BYTES = env.integer("WORKER_CACHE_GIB", 200, minimum=1, maximum=1_048_576) * 1024**3
"""Of weights and input pictures on the worker's own disk; what was used longest ago goes first, before the disk is full."""
WORKER_RAM_BYTES = env.integer("WORKER_RAM_GIB", 8, minimum=1, maximum=65_536) * 1024**3
"""Of weights a worker keeps in the machine's memory: without a card those it renders with, beside a card those that left it."""
TORCH_DEVICE = env.choice("TORCH_DEVICE", ("auto", "cpu", "cuda"), "auto")
TORCH_DTYPE = env.choice("TORCH_DTYPE", ("auto", "float32", "float16", "bfloat16"), "auto")
TORCH_COMPILE_SHAPES = env.words_like(
    "TORCH_COMPILE_SHAPES", r"[1-9]\d*x[1-9]\d*x[1-9]\d*", "width x height x images, such as 512x512x8"
)
"""Sizes and micro-batches for which workers compile the networks; the first pass of each takes a minute or two longer."""
RENDERER = "gpuworker.engine.DiffusersRenderer"
"""Dotted path; tests of scheduling and faults name their pattern renderer here."""

ASSUMED_SECONDS_PER_IMAGE = env.integer("ASSUMED_SECONDS_PER_IMAGE", 30, minimum=1, maximum=86_400)
ASSUMED_SECONDS_PER_MEGAPIXEL_STEP = env.integer("ASSUMED_SECONDS_PER_MEGAPIXEL_STEP", 10, minimum=1, maximum=3600)
"""What is held for an image of a kind that was never rendered here, the larger of the two; what is not used comes back."""

EAS_MOUNTS = env.pairs(
    "EAS_MOUNTS", "/code/stable-diffusion-webui/data=data,/code/stable-diffusion-webui/data-oss=data"
)
"""Mount path=folder within a team's files, for calls with ``save_dir``. The default has both paths of PAI-EAS's documents."""

TEAM_FILES_BYTES = env.integer("TEAM_FILES_GIB", 50, minimum=1, maximum=1_048_576) * 1024**3
"""Of what the people of one team upload in the file browser."""
IMPORT_DIRS = env.folders("IMPORT_DIRS")
"""Folders of the server below which superusers may name a data directory to take in; none: the admin imports none."""
