"""Document 000, Alibaba's page on SDWebUI of February 2026 (Chinese): what it prints, in its order."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from tests.flows.documents.conftest import Documented, body_of
from tests.services import PATIENCE_SECONDS, wait_until

MOUNT = "/code/stable-diffusion-webui/data"
NAME = r"\d{6}-[0-9a-f-]{36}"
DATE = r"\d{4}-\d\d-\d\d"

SAVED_LOCALLY = '''
import requests
import base64
from PIL import Image
import io

# 注意 !!!!:请删除调用地址末尾的 /。
SERVICE_URL = "<调用地址>"
TOKEN = "<Token>"

def generate_image(prompt: str) -> Image.Image:
    """根据文本提示词生成图片。"""
    payload = {
        "prompt": prompt,
        "negative_prompt": "blurry, low quality, deformed",
        "steps": 25,
        "width": 512,
        "height": 512,
        "cfg_scale": 7.5,
    }
    
    response = requests.post(
        f"{SERVICE_URL}/sdapi/v1/txt2img",
        json=payload,
        headers={"Authorization": TOKEN}
    )
    response.raise_for_status()
    
    # 解码第一张图片
    img_data = response.json()["images"][0]
    return Image.open(io.BytesIO(base64.b64decode(img_data)))

# 生成并保存
image = generate_image("a serene mountain landscape at sunset")
image.save("output.png")
'''  # noqa: W293


def test_01_a_picture_is_saved_locally(documented: Documented, tmp_path: Path):
    documented.run(SAVED_LOCALLY, {"<调用地址>": documented.url, "<Token>": documented.token}, tmp_path)
    assert Image.open(tmp_path / "output.png").size == (512, 512)


SAVED_TO_OSS = """
import requests

# 注意 !!!!:请删除调用地址末尾的 /。
SERVICE_URL = "<调用地址>"
TOKEN = "<Token>"

payload = {
    "prompt": "professional portrait photography",
    "steps": 30,
    "alwayson_scripts": {
        "sd_model_checkpoint": "v1-5-pruned-emaonly.safetensors",
        "save_dir": "/code/stable-diffusion-webui/data/outputs"
    }
}

response = requests.post(
    f"{SERVICE_URL}/sdapi/v1/txt2img",
    json=payload,
    headers={"Authorization": TOKEN}
)

# 获取保存的图片路径
data = response.json()

# 对应部署EAS服务时,默认挂载OSS文件夹对应的mount_path。
mount_path = "/code/stable-diffusion-webui/data"

# 对应部署EAS服务时,选择的OSS地址bucket
oss_url = "oss://examplebucket/data-oss"

for idx, img_path in enumerate(data['parameters']['image_url'].split(',')):
    # 获取生成的图像在OSS中的实际地址。
    img_oss_path = img_path.replace(mount_path, oss_url)
    print(img_oss_path)
"""


def test_02_a_picture_is_saved_in_the_bucket(documented: Documented, tmp_path: Path):
    said = documented.run(SAVED_TO_OSS, {"<调用地址>": documented.url, "<Token>": documented.token}, tmp_path).strip()
    beginning = "oss://examplebucket/"
    assert re.fullmatch(rf"{beginning}data-oss/outputs/txt2img-images/{DATE}/{NAME}-\d+\.png", said)
    assert Image.open(documented.bucket / said.removeprefix(beginning)).size == (512, 512)


LORA = """
{
  "prompt":"girls <lora:yaeMikoRealistic_Genshin:1>",
  "steps":20,
  "save_images":true
}
"""


def test_03_a_lora_is_named_in_the_prompt(documented: Documented):
    answer = documented.request("/sdapi/v1/txt2img", body_of(LORA))
    assert len(answer["images"]) == 1 and "Lora hashes" in answer["info"]


QUEUED = """
import requests


SERVICE_URL = "<公网输入调用地址>"
TOKEN = "<Token>"

response = requests.post(
    f"{SERVICE_URL}/sdapi/v1/txt2img?task_id=job_001",
    json={
        "prompt": "futuristic city skyline",
        "steps": 30,
        "alwayson_scripts": {
            "save_dir": "/code/stable-diffusion-webui/data/outputs"
        }
    },
    headers={"Authorization": TOKEN}
)
print(f"任务已入队: {response.json()}")
"""
SUBSCRIBED = """
from eas_prediction import QueueClient

# 请必须将调用地址的格式调整为示例格式:112231234124214.cn-hangzhou.pai-eas.aliyuncs.com
SERVICE_URL = "<调用地址>"
TOKEN = "<Token>"
# 创建服务时配置的服务名称
SERVICE_NAME = "<服务名称>"

sink = QueueClient(SERVICE_URL, SERVICE_NAME + '/sink')
sink.set_token(TOKEN)
sink.init()

for result in sink.watch(0, 5, auto_commit=True).run():
    print(f"任务 {result.tags.get('task_id')} 已完成")
    print(f"图片地址: {result.data}")
"""


def test_04_a_request_is_queued_and_its_index_answered(documented: Documented, tmp_path: Path):
    changes = {"<公网输入调用地址>": documented.queue_url, "<Token>": documented.queue_token}
    assert re.fullmatch(r"任务已入队: \d+\n", documented.run(QUEUED, changes, tmp_path))


def test_05_the_result_of_a_queued_request_is_pushed(documented: Documented, client_python: Path, tmp_path: Path):
    changes = {"<公网输入调用地址>": documented.queue_url, "<Token>": documented.queue_token}
    documented.run(QUEUED, changes, tmp_path)
    address = documented.url.removeprefix("http://")
    changes = {"<调用地址>": address, "<Token>": documented.queue_token, "<服务名称>": "sd_async"}
    said = documented.listen(client_python, SUBSCRIBED, changes, tmp_path, until=lambda text: "图片地址" in text)
    assert "任务 job_001 已完成" in said and f"{MOUNT}/outputs/txt2img-images/" in said


TXT2IMG = """
{
      "alwayson_scripts": {
          "sd_model_checkpoint": "deliberate_v2.safetensors",  
          "save_dir": "/code/stable-diffusion-webui/data-oss/outputs",
          "sd_vae": "Automatic"
      },
      "steps": 20,
      "prompt": "girls",          
      "batch_size": 1,                                            
      "n_iter": 2,                                                 
      "width": 576, 
      "height": 576,
      "negative_prompt": "ugly, out of frame"
  }
"""  # noqa: W291


def assert_paths(documented: Documented, answer: dict[str, Any], kind: str, mount: str = f"{MOUNT}-oss") -> None:
    """A grid and two pictures, in the bucket, with names as the document shows them."""
    grid, *pictures = answer["parameters"]["image_url"].split(",")
    seeds = answer["parameters"]["seed"].split(",")
    assert answer["images"] == [] and int(seeds[1]) == int(seeds[0]) + 1
    assert re.fullmatch(rf"{mount}/outputs/{kind}-grids/{DATE}/grid-{NAME}\.png", grid)
    for seed, path in zip(seeds, pictures, strict=True):
        assert re.fullmatch(rf"{mount}/outputs/{kind}-images/{DATE}/{NAME}-{seed}\.png", path)
    assert [Image.open(file).size for file in documented.objects(answer, mount)] == [
        (1152, 576),
        (576, 576),
        (576, 576),
    ]


def test_06_a_request_with_checkpoint_folder_and_vae(documented: Documented):
    answer = documented.request("/sdapi/v1/txt2img", body_of(TXT2IMG))
    assert_paths(documented, answer, "txt2img")
    shown = {"id_task", "status", "image_url", "seed", "error_msg", "total_time"}
    assert shown <= answer["parameters"].keys() and answer["parameters"]["status"] == 0


CURL = """
# 调用同步接口验证模型效果。

curl --location --request POST '<service_url>/sdapi/v1/txt2img' \\
--header 'Authorization: <token>' \\
--header 'Content-Type: application/json' \\
--data-raw '{
      "alwayson_scripts": {
          "sd_model_checkpoint": "deliberate_v2.safetensors",
          "save_dir": "/code/stable-diffusion-webui/data-oss/outputs",
          "sd_vae": "Automatic"
      },
      "prompt": "girls",          
      "batch_size": 1,                                            
      "n_iter": 2,                                                 
      "width": 576, 
      "height": 576,
      "negative_prompt": "ugly, out of frame"
  }'
"""  # noqa: W291


def test_07_a_synchronous_call_by_curl(documented: Documented, tmp_path: Path):
    said = documented.shell(CURL, {"<service_url>": documented.url, "<token>": documented.token}, tmp_path)
    assert_paths(documented, body_of(said), "txt2img")


CURL_QUEUED = """
# 将数据直接送入异步队列。
curl --location --request POST '<service_url>/sdapi/v1/txt2img' \\
--header 'Authorization: <token>' \\
--header 'Content-Type: application/json' \\
--data-raw '{
    "alwayson_scripts": {
        "sd_model_checkpoint": "deliberate_v2.safetensors",
        "id_task": "14837",
        "uid": "123",
        "save_dir": "tmp/outputs"
    },
    "prompt": "girls",
    "batch_size": 1,
    "n_iter": 2,
    "width": 576,
    "height": 576,
    "negative_prompt": "ugly, out of frame"
}'
"""


def test_08_an_asynchronous_call_by_curl(documented: Documented, tmp_path: Path):
    changes = {"<service_url>": documented.queue_url, "<token>": documented.queue_token}
    assert documented.shell(CURL_QUEUED, changes, tmp_path).isdecimal()
    parameters = documented.queued_result("14837")["parameters"]
    assert parameters["status"] == 0 and parameters["image_url"].startswith("tmp/outputs/txt2img-grids/")


IMG2IMG = """
{
    "alwayson_scripts": {
        "image_link":"https://eas-cache-cn-hangzhou.oss-cn-hangzhou-internal.aliyuncs.com/stable-diffusion-cache/tests/boy.png",
        "sd_model_checkpoint": "deliberate_v2.safetensors",
        "sd_vae": "Automatic",
        "save_dir": "/code/stable-diffusion-webui/data-oss/outputs"
    },
    "prompt": "girl",
    "batch_size": 1,                                            
    "n_iter": 2,                                                 
    "width": 576, 
    "height": 576,
    "negative_prompt": "ugly, out of frame",
    "steps": 20, # Sampling steps
    "seed": 111,   
    "subseed": 111, # Variation seed
    "subseed_strength": 0, # Variation strength
    "seed_resize_from_h": 0, # Resize seed from height
    "seed_resize_from_w": 0, # Resize seed from width
    "seed_enable_extras": false, # Extra
    "sampler_name": "DDIM", # Sampling method
    "cfg_scale": 7.5, # CFG Scale
    "restore_faces": true, # Restore faces
    "tiling": false, # Tiling
    "init_images": [], # image base64 str, default None
    "mask_blur": 4, # Mask blur
    "resize_mode": 1, # 0 just resize, 1 crop and resize, 2 resize and fill, 3 just resize
    "denoising_strength": 0.75, # Denoising strength
    "inpainting_mask_invert": 0, #int, index of ['Inpaint masked', 'Inpaint not masked'], Mask mode
    "inpainting_fill": 0, #index of ['fill', 'original', 'latent noise', 'latent nothing'], Masked content
    "inpaint_full_res": 0, # index of ["Whole picture", "Only masked"], Inpaint area
    "inpaint_full_res_padding": 32, #minimum=0, maximum=256, step=4, value=32, Only masked padding, pixels
    #"image_cfg_scale": 1, # resized by scale
    #"script_name": "Outpainting mk2", # 使用的script名字,不使用的话不要加这个字段
    #"script_args": ["Outpainting", 128, 8, ["left", "right", "up", "down"], 1, 0.05]  # 对应script脚本的参数,此处依次对应: 固定字段, pixels, mask_blur, direction, noise_q, color_variation
}
"""  # noqa: E501, W291
PICTURES = "https://eas-cache-cn-hangzhou.oss-cn-hangzhou-internal.aliyuncs.com"


def test_09_a_picture_to_begin_from_is_named_by_its_address(documented: Documented):
    answer = documented.request("/sdapi/v1/img2img", body_of(IMG2IMG, {PICTURES: documented.pictures}))
    assert_paths(documented, answer, "img2img")
    assert answer["parameters"]["seed"] == "111,112"


def test_09_its_remarks_are_fields_too(documented: Documented):
    """What the printed request has behind number signs: a script with its arguments."""
    remarked = body_of(re.sub(r'#(?=")', "", IMG2IMG), {PICTURES: documented.pictures})
    assert remarked["script_args"] == ["Outpainting", 128, 8, ["left", "right", "up", "down"], 1, 0.05]
    parameters = documented.request("/sdapi/v1/img2img", {**remarked, "steps": 2})["parameters"]
    paths = parameters["image_url"].split(",")
    assert (parameters["status"], parameters["error_msg"]) == (0, "")
    assert all(re.match(rf"{MOUNT}-oss/outputs/img2img-(images|grids)/{DATE}/", path) for path in paths)


CONTROLNET = """
{
    "alwayson_scripts": {
        "sd_model_checkpoint": "deliberate_v2.safetensors", #模型名称,需要带着 
        "save_dir": "/code/stable-diffusion-webui/data-oss/outputs",
        "controlnet":{
            "args":[
                {
                    "image_link": "https://pai-aigc-dataset.oss-cn-hangzhou.aliyuncs.com/pixabay_images/00008b87bf3ff6742b8cf81c358b9dbc.jpg",
                    "enabled": true, 
                    "module": "canny", 
                    "model": "control_v11p_sd15_canny", 
                    "weight": 1, 
                    "resize_mode": "Crop and Resize", 
                    "low_vram": false, 
                    "processor_res": 512, 
                    "threshold_a": 100, 
                    "threshold_b": 200, 
                    "guidance_start": 0, 
                    "guidance_end": 1, 
                    "pixel_perfect": true, 
                    "control_mode": "Balanced", 
                    "input_mode": "simple", 
                    "batch_images": "", 
                    "output_dir": "", 
                    "loopback": false
                }
            ]
        }
    },
    # 主要参数
    "prompt": "girls",          
    "batch_size": 1,                                            
    "n_iter": 2,                                                 
    "width": 576, 
    "height": 576,
    "negative_prompt": "ugly, out of frame"
}
"""  # noqa: E501, W291
DATASET = "https://pai-aigc-dataset.oss-cn-hangzhou.aliyuncs.com"


def test_10_a_control_picture_is_named_by_its_address(documented: Documented):
    answer = documented.request("/sdapi/v1/txt2img", body_of(CONTROLNET, {DATASET: documented.pictures}))
    assert_paths(documented, answer, "txt2img")
    assert len(answer["parameters"]["image_mask_url"].split(",")) == 2


DEPLOYED_STANDARD = """
{
    "metadata": {
        "instance": 1,
        "name": "sd_v32",
        "enable_webservice": true
    },
    "containers": [
        {
            "image": "eas-registry-vpc.<region>.cr.aliyuncs.com/pai-eas/stable-diffusion-webui:4.2",
            "script": "./webui.sh --listen --port 8000 --skip-version-check --no-hashing --no-download-sd-model --skip-prepare-environment --api --filebrowser --data-dir=/code/stable-diffusion-webui/data",
            "port": 8000
        }
    ],
    "cloud": {
        "computing": {
            "instance_type": "ml.gu7i.c16m60.1-gu30",
            "instances": null
        },
        "networking": {
            "vpc_id": "vpc-t4nmd6nebhlwwexk2****",
            "vswitch_id": "vsw-t4nfue2s10q2i0ae3****",
            "security_group_id": "sg-t4n85ksesuiq3wez****"
        }
    },
    "storage": [
        {
            "oss": {
                "path": "oss://examplebucket/data-oss",
                "readOnly": false
            },
            "properties": {
                "resource_type": "model"
            },
            "mount_path": "/code/stable-diffusion-webui/data"
        },
        {
            "nfs": {
                "path": "/",
                "server": "726434****-aws0.ap-southeast-1.nas.aliyuncs.com"
            },
            "properties": {
                "resource_type": "model"
            },
            "mount_path": "/code/stable-diffusion-webui/data"
        }
    ]
}
"""  # noqa: E501
DEPLOYED_API = """
{
    "metadata": {
        "name": "sd_async",
        "instance": 1,
        "rpc.worker_threads": 1,
        "type": "Async"
    },
    "cloud": {
        "computing": {
            "instance_type": "ml.gu7i.c16m60.1-gu30",
            "instances": null
        },
        "networking": {
            "vpc_id": "vpc-bp1t2wukzskw9139n****",
            "vswitch_id": "vsw-bp12utkudylvp4c70****",
            "security_group_id": "sg-bp11nqxfd0iq6v5g****"
        }
    },
    "queue": {
        "cpu": 1,
        "max_delivery": 1,
        "memory": 4000,
        "resource": ""
    },
    "storage": [
        {
            "oss": {
                "path": "oss://examplebucket/aohai-singapore/",
                "readOnly": false
            },
            "properties": {
                "resource_type": "model"
            },
            "mount_path": "/code/stable-diffusion-webui/data"
        },
        {
            "nfs": {
                "path": "/",
                "server": "0c9624****-fgh60.cn-hangzhou.nas.aliyuncs.com"
            },
            "properties": {
                "resource_type": "model"
            },
            "mount_path": "/code/stable-diffusion-webui/data"
        }
    ],
    "containers": [
        {
            "image": "eas-registry-vpc.<region>.cr.aliyuncs.com/pai-eas/stable-diffusion-webui:4.2",
            "script": "./webui.sh --listen --port 8000 --skip-version-check --no-hashing --no-download-sd-model --skip-prepare-environment --api-log --time-log --nowebui --data-dir=/code/stable-diffusion-webui/data",
            "port": 8000
        }
    ]
}
"""  # noqa: E501


@pytest.mark.parametrize("printed", [DEPLOYED_STANDARD, DEPLOYED_API], ids=["Standard", "API"])
def test_11_a_printed_service_document_is_a_service_that_draws(documented: Documented, printed: str, tmp_path: Path):
    file = tmp_path / "service.json"
    file.write_text(printed)
    name = f"of_the_document_{json.loads(printed)['metadata']['name']}"
    made = documented.platform.manage("create_service", name, "--team", "studio", "--document", str(file))
    address, header = f"{documented.url}/api/predict/{name}", {"Authorization": made.split()[-1]}
    body = {"prompt": "girls", "steps": 5, "alwayson_scripts": {"save_dir": f"{MOUNT}/outputs"}}
    answer = requests.post(f"{address}/sdapi/v1/txt2img", json=body, headers=header, timeout=PATIENCE_SECONDS)
    assert answer.status_code == 200, answer.text
    if printed is DEPLOYED_API:
        assert answer.text == "1"
        wait_until(lambda: got(f"{address}/sink?_auto_delete_=false", header).status_code == 200, what="The result")
        answer = got(f"{address}/sink", header)
    assert answer.json()["parameters"]["image_url"].startswith(f"{MOUNT}/outputs/txt2img-images/")


def got(address: str, headers: dict[str, str]) -> requests.Response:
    return requests.get(address, params={"_timeout_": "30s"}, headers=headers, timeout=PATIENCE_SECONDS)
