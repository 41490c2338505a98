"""The two service documents that PAI-EAS's documentation prints, and one that has everything a document may have."""

from __future__ import annotations

from typing import Any

STORAGE = [
    {
        "oss": {"path": "oss://examplebucket/data-oss", "readOnly": False},
        "properties": {"resource_type": "model"},
        "mount_path": "/code/stable-diffusion-webui/data",
    },
    {
        "nfs": {"path": "/", "server": "726434****-aws0.ap-southeast-1.nas.aliyuncs.com"},
        "properties": {"resource_type": "model"},
        "mount_path": "/code/stable-diffusion-webui/data",
    },
]
CLOUD = {
    "computing": {"instance_type": "ml.gu7i.c16m60.1-gu30", "instances": None},
    "networking": {
        "vpc_id": "vpc-t4nmd6nebhlwwexk2****",
        "vswitch_id": "vsw-t4nfue2s10q2i0ae3****",
        "security_group_id": "sg-t4n85ksesuiq3wez****",
    },
}
IMAGE = "eas-registry-vpc.<region>.cr.aliyuncs.com/pai-eas/stable-diffusion-webui:4.2"
COMMON = "./webui.sh --listen --port 8000 --skip-version-check --no-hashing --no-download-sd-model --skip-prepare-environment"
STANDARD: dict[str, Any] = {
    "metadata": {"instance": 1, "name": "sd_v32", "enable_webservice": True},
    "containers": [
        {
            "image": IMAGE,
            "script": f"{COMMON} --api --filebrowser --data-dir=/code/stable-diffusion-webui/data",
            "port": 8000,
        }
    ],
    "cloud": CLOUD,
    "storage": STORAGE,
}
API: dict[str, Any] = {
    "metadata": {"name": "sd_async", "instance": 1, "rpc.worker_threads": 1, "type": "Async"},
    "cloud": CLOUD,
    "queue": {"cpu": 1, "max_delivery": 1, "memory": 4000, "resource": ""},
    "storage": STORAGE,
    "containers": [
        {
            "image": IMAGE,
            "script": f"{COMMON} --api-log --time-log --nowebui --data-dir=/code/stable-diffusion-webui/data",
            "port": 8000,
        }
    ],
}
RICH: dict[str, Any] = {
    "metadata": {
        "name": "studio.cluster",
        "instance": 3,
        "type": "SDCluster",
        "enable_webservice": True,
        "rpc": {"keepalive": 90500, "max_queue_size": 12},
        "rpc.rate_limit": 5,
        "rpc.worker_threads": 2,
        "workspace_id": "1234",
        "shm_size": 100,
    },
    "containers": [
        {
            "image": "registry/pai-eas/stable-diffusion-webui:4.2-cluster-webui",
            "script": f"{COMMON} \\\n --xformers --cluster-status --lora-dir /mnt/data/models/Lora --vae-dir=/mnt/data/models/VAE "
            "--root-extensions --always-hide-tabs 'Checkpoint Merger' Train --sd-dynamic-cache --min-ram-reserved 40.5 "
            "--enable-nsfw-censor --data-dir /mnt/data --theme dark --tcmalloc",
            "port": 8000,
            "env": [{"name": "HF_HOME", "value": "/mnt/data/hf"}],
        },
        {"image": "registry/sidecar:1", "script": "run --api-log"},
    ],
    "autoscaler": {"min": 1, "max": 6, "strategies": {"qps": 1.5}},
    "storage": [
        *[{**STORAGE[0], "mount_path": "/mnt/data/"}],
        {
            "model": {"name": "sdxl", "version": "0.1.0"},
            "mount_path": "/mnt/models",
            "properties": {"resource_type": "model"},
        },
        {"empty_dir": {"medium": "memory", "size_limit": 20}, "mount_path": "/dev/shm"},
    ],
    "renderkiln": {"max_frames": 500},
    "x": [None, 1.0, "ä\u0000"],
}
EVERY = {"Standard": STANDARD, "API": API, "with everything": RICH}
