"""Document 003, an article on the API of A1111 (Chinese, 2025): its two programs. It sends no token, so one is added."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.flows.documents.conftest import Documented

TXT2IMG = """
import requests
import base64
import json
from PIL import Image
from io import BytesIO
# API地址
url = "http://127.0.0.1:7860/sdapi/v1/txt2img"
# 请求参数
payload = {
"prompt": "a cyberpunk city at night, neon lights, rain, 8k resolution",
"negative_prompt": "ugly, distorted, lowres, watermark",
"steps": 30,
"width": 768,
"height": 512,
"sampler_index": "DPM++ 2M Karras",
"cfg_scale": 8,
"batch_size": 1
}
# 发送请求
response = requests.post(url=url, json=payload)
result = response.json()
# 解析返回结果(图像以base64编码存储在images字段)
for i, img_data in enumerate(result["images"]):
    # 解码base64为图像
    image = Image.open(BytesIO(base64.b64decode(img_data)))
    # 保存图像
    image.save(f"generated_image_{i}.png")
    print(f"图像已保存:generated_image_{i}.png")
"""
IMG2IMG = """
import requests
import base64
from PIL import Image
from io import BytesIO
# 读取本地图像并转为base64
def image_to_base64(image_path):
    with Image.open(image_path) as img:
        buffered = BytesIO()
        img.save(buffered, format="PNG")
        return base64.b64encode(buffered.getvalue()).decode()
# 原始图像路径
img_path = "input_image.png"
img_base64 = image_to_base64(img_path)
# API地址
url = "http://127.0.0.1:7860/sdapi/v1/img2img"
# 请求参数(新增init_images字段)
payload = {
"init_images": [img_base64], # 原始图像的base64列表
"prompt": "turn the photo into a Van Gogh style painting",
"negative_prompt": "photorealistic, modern elements",
"steps": 30,
"denoising_strength": 0.75, # 去噪强度(0-1,越大越偏离原图)
"sampler_index": "Euler a"
}
# 发送请求并保存结果
response = requests.post(url=url, json=payload)
result = response.json()
for i, img_data in enumerate(result["images"]):
    image = Image.open(BytesIO(base64.b64decode(img_data)))
    image.save(f"img2img_result_{i}.png")
"""


def changes(documented: Documented) -> dict[str, str]:
    """The token as the password of Basic, which an address can hold."""
    return {"http://127.0.0.1:7860": documented.url.replace("http://", f"http://api:{documented.token}@")}


def test_01_txt2img(documented: Documented, tmp_path: Path):
    said = documented.run(TXT2IMG, changes(documented), tmp_path)
    assert said == "图像已保存:generated_image_0.png\n"
    assert Image.open(tmp_path / "generated_image_0.png").size == (768, 512)


def test_02_img2img(documented: Documented, tmp_path: Path):
    Image.new("RGB", (512, 512), "navy").save(tmp_path / "input_image.png")
    documented.run(IMG2IMG, changes(documented), tmp_path)
    assert Image.open(tmp_path / "img2img_result_0.png").size == (512, 512)
