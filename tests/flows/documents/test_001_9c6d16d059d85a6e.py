"""Document 001, Alibaba's page on SDWebUI in its older, longer form (Japanese): what it prints, in its order.

The copy has lost the line breaks of its programs; they are put back here. What its Java program for requests sends is read from the
program and sent as the Java client sends it; its Java program for results asks for what the Python one (07) asks for.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from tests.flows.documents.conftest import Documented, body_of

MOUNT = "/code/stable-diffusion-webui/data"
NAME = r"\d{6}-[0-9a-f-]{36}"
DATE = r"\d{4}-\d\d-\d\d"

CURL = """
curl --location --request POST '<service_url>/sdapi/v1/txt2img' \\
--header 'Authorization: <token>' \\
--header 'Content-Type: application/json' \\
--data-raw '{ "prompt":"cute dog ", "steps":20 }'
"""


def changes(documented: Documented) -> dict[str, str]:
    return {"<service_url>": documented.url, "<token>": documented.token}


def queue_changes(documented: Documented) -> dict[str, str]:
    return {"<service_url>": documented.queue_url, "<token>": documented.queue_token}


def test_01_a_synchronous_call_by_curl(documented: Documented, tmp_path: Path):
    assert len(json.loads(documented.shell(CURL, changes(documented), tmp_path))["images"]) == 1


TO_OSS = """
import requests
import oss2
from oss2.credentials import EnvironmentVariableCredentialsProvider

# ステップ 1: リクエストを送信します。生成された画像は OSS に保存されます。
url = "<service_url>"
# Alibaba Cloud アカウントの AccessKey ペアは、すべての API 操作に対する権限を持っています。これらの認証情報を使用して OSS で操作を実行することは、高いリスクを伴う操作です。RAM ユーザーを使用して API 操作を呼び出すか、日常の O&M を実行することを推奨します。RAM ユーザーを作成するには、RAM コンソールにログインしてください。
auth = oss2.ProviderAuth(EnvironmentVariableCredentialsProvider())
# この例では、中国 (杭州) リージョンのエンドポイントを使用します。実際の エンドポイントを指定してください。
bucket = oss2.Bucket(auth, '<endpoint>', '<examplebucket>')

payload = {
    "alwayson_scripts": {
        "sd_model_checkpoint": "deliberate_v2.safetensors",
        "save_dir": "/code/stable-diffusion-webui/data/outputs"
    },
    "steps": 30,
    "prompt": "girls",
    "batch_size": 1,
    "n_iter": 2,
    "width": 576,
    "height": 576,
    "negative_prompt": "ugly, out of frame"
}

session = requests.session()
session.headers.update({"Authorization": "<token>"})

response = session.post(url=f'{url}/sdapi/v1/txt2img', json=payload)
if response.status_code != 200:
    raise Exception(response.content)

data = response.json()

# ステップ 2: OSS から画像を取得し、オンプレミスのデバイスに画像をダウンロードします。
# サービスをデプロイしたときに指定した OSS の mount_path 設定。
mount_path = "/code/stable-diffusion-webui/data"
# サービスをデプロイしたときに指定した OSS パス。
oss_url = "oss://examplebucket/data-oss"

for idx, img_path in enumerate(data['parameters']['image_url'].split(',')):
    # OSS で生成された画像の実際の URL を取得します。
    img_oss_path = img_path.replace(mount_path, oss_url)
    print(idx, img_oss_path, url)
    # OSS オブジェクトをオンプレミスのファイルシステムにダウンロードします。<examplebucket> を作成した OSS バケットの名前に置き換えます。
    bucket.get_object_to_file(img_oss_path[len("oss://examplebucket/"):], f'output-{idx}.png')
"""  # noqa: E501


def test_02_pictures_are_saved_in_the_bucket_and_got_from_there(documented: Documented, tmp_path: Path):
    lines = documented.run(TO_OSS, changes(documented), tmp_path).splitlines()
    bucket = "oss://examplebucket/data-oss/outputs"
    assert re.fullmatch(rf"0 {bucket}/txt2img-grids/{DATE}/grid-{NAME}\.png {documented.url}", lines[0])
    assert re.fullmatch(rf"1 {bucket}/txt2img-images/{DATE}/{NAME}-\d+\.png {documented.url}", lines[1])
    sizes = [Image.open(tmp_path / f"output-{number}.png").size for number in range(3)]
    assert len(lines) == 3 and sizes == [(1152, 576), (576, 576), (576, 576)]


SAVED_LOCALLY = """
import requests
import io
import base64
from PIL import Image, PngImagePlugin

url = "<service_url>"

payload = {
    "prompt": "puppy dog",
    "steps": 20,
    "n_iter": 2
}

session = requests.session()
session.headers.update({"Authorization": "<token>"})

response = session.post(url=f'{url}/sdapi/v1/txt2img', json=payload)
if response.status_code != 200:
    raise Exception(response.content)

data = response.json()

# 同期リクエストから Base64 エンコードされた画像を取得できますが、代わりに画像 URL を取得することを推奨します。
for idx, im in enumerate(data['images']):
    image = Image.open(io.BytesIO(base64.b64decode(im.split(",", 1)[0])))

    png_payload = {
        "image": "data:image/png;base64," + im
    }
    resp = session.post(url=f'{url}/sdapi/v1/png-info', json=png_payload)

    pnginfo = PngImagePlugin.PngInfo()
    pnginfo.add_text("parameters", resp.json().get("info"))
    image.save(f'output-{idx}.png', pnginfo=pnginfo)
"""


def test_03_pictures_are_saved_locally_with_their_texts(documented: Documented, tmp_path: Path):
    documented.run(SAVED_LOCALLY, changes(documented), tmp_path)
    texts = [Image.open(tmp_path / f"output-{number}.png").info["parameters"] for number in range(2)]
    assert all(text.startswith("puppy dog\nSteps: 20, Sampler: Euler") for text in texts)


LORA = """
{ "prompt":"girls <lora:yaeMikoRealistic_Genshin:1>", "steps":20, "save_images":true }
"""


@pytest.mark.parametrize("weight", ["1", "1000"])
def test_04_a_lora_is_named_in_the_prompt(documented: Documented, weight: str):
    body = body_of(LORA, {":1>": f":{weight}>"})
    assert "Lora hashes" in documented.request("/sdapi/v1/txt2img", body)["info"]


QUEUED = """
import requests

url = "<service_url>"
session = requests.session()
session.headers.update({"Authorization": "<token>"})

prompts = ["cute dog", "cute cat", "cute girl"]

for i in range(5):
    p = prompts[i % len(prompts)]
    payload = {
        "prompt": p,
        "steps": 20,
        "alwayson_scripts": {
            "save_dir": "/code/stable-diffusion-webui/data-oss/outputs/txt2img"
        },
    }
    response = session.post(url=f'{url}/sdapi/v1/txt2img?task_id=txt2img_{i}', json=payload)
    if response.status_code != 200:
        exit(f"send request error:{response.content}")
    else:
        print(f"send {p} success, index is {response.content}")

for i in range(5):
    p = prompts[i % len(prompts)]
    payload = {
        "prompt": p,
        "steps": 20,
        "alwayson_scripts": {
            "save_dir": "/code/stable-diffusion-webui/data-oss/outputs/img2img",
            "image_link": "https://eas-cache-cn-hangzhou.oss-cn-hangzhou-internal.aliyuncs.com/stable-diffusion-cache/tests/boy.png",
        },
    }
    response = session.post(url=f'{url}/sdapi/v1/img2img?task_id=img2img_{i}', json=payload)
    if response.status_code != 200:
        exit(f"send request error:{response.content}")
    else:
        print(f"send {p} success, index is {response.content}")
"""
PICTURES = "https://eas-cache-cn-hangzhou.oss-cn-hangzhou-internal.aliyuncs.com"


def queue_ten(documented: Documented, folder: Path) -> list[int]:
    said = documented.run(QUEUED, {**queue_changes(documented), PICTURES: documented.pictures}, folder)
    return [int(index) for index in re.findall(r"^send cute \w+ success, index is b'(\d+)'$", said, re.MULTILINE)]


def test_05_ten_requests_are_queued(documented: Documented, tmp_path: Path):
    indexes = queue_ten(documented, tmp_path)
    assert len(indexes) == 10 and indexes == sorted(set(indexes))


JAVA = r"""
import com.aliyun.openservices.eas.predict.http.HttpConfig;
import com.aliyun.openservices.eas.predict.http.QueueClient;
import com.aliyun.openservices.eas.predict.queue_client.QueueUser;
import org.apache.commons.lang3.tuple.Pair;
import java.util.HashMap;

public class SDWebuiAsyncPutTest {
    public static void main(String[] args) throws Exception {
        // キューサービスのクライアントを作成します。
        String queueEndpoint = "http://166233998075****.cn-hangzhou.pai-eas.aliyuncs.com";
        String queueToken = "xxxxx==";
        // 入力キューの名前は、サービス名と使用したいリクエストパスで構成されます。
        String inputQueueName = "<service_name>/sdapi/v1/txt2img";
        // 入力キューを作成します。入力キューにリクエストデータを追加すると、推論サービスは自動的に入力キューからリクエストデータを読み取ります。
        QueueClient inputQueue = new QueueClient(queueEndpoint, inputQueueName, queueToken, new HttpConfig(), new QueueUser());
        // キューデータをクリアします。注意して進めてください。
        // input_queue.clear();
        // 入力キューにリクエストデータを追加します。
        int count = 5;
        for (int i = 0; i < count; ++i) {
            // リクエストデータを作成します。
            String data = "{\n" +
                    " \"prompt\": \"cute dog\", \n" +
                    " \"steps\":20,\n" +
                    " \"alwayson_scripts\":{\n" +
                    " \"save_dir\":\"/code/stable-diffusion-webui/data-oss/outputs/txt2img\"\n" +
                    " }\n" +
                    " }";
            // カスタムタグを作成します。
            HashMap<String, String> map = new HashMap<String, String>(1);
            map.put("task_id", "txt2img_" + i);
            Pair<Long, String> entry = inputQueue.put(data.getBytes(), map);
            System.out.println(String.format("send success, index is %d, request_id is %s", entry.getKey(), entry.getValue()));
            // キューサービスは多優先度キューをサポートしています。put 関数を使用してリクエストの優先度レベルを設定できます。デフォルト値は 0 です。値 1 は高い優先度を指定します。
            // inputQueue.put(data.getBytes(), 0L, null);
        }
        // クライアントを閉じます。
        inputQueue.shutdown();

        inputQueueName = "<service_name>/sdapi/v1/img2img";
        inputQueue = new QueueClient(queueEndpoint, inputQueueName, queueToken, new HttpConfig(), new QueueUser());
        for (int i = 0; i < count; ++i) {
            // リクエストデータを作成します。
            String data = "{\n" +
                    " \"prompt\": \"cute dog\", \n" +
                    " \"steps\":20,\n" +
                    " \"alwayson_scripts\":{\n" +
                    " \"save_dir\":\"/code/stable-diffusion-webui/data-oss/outputs/img2img\",\n" +
                    " \"image_link\":\"https://eas-cache-cn-hangzhou.oss-cn-hangzhou-internal.aliyuncs.com/stable-diffusion-cache/tests/boy.png\"\n" +
                    " }\n" +
                    " }";
            HashMap<String, String> map = new HashMap<String, String>(1);
            map.put("task_id", "img2img_" + i);
            Pair<Long, String> entry = inputQueue.put(data.getBytes(), map);
            System.out.println(String.format("send success, index is %d, requestId is %s", entry.getKey(), entry.getValue()));
        }
        // クライアントを閉じます。
        inputQueue.shutdown();
    }
}
"""  # noqa: E501


def java_puts() -> list[tuple[str, str]]:
    """Of the Java program: the queue's name and the data, of each of its two loops."""
    names = re.findall(r'inputQueueName = "(.*?)"', JAVA)
    data = re.findall(r"String data = (.*?);\n", JAVA, re.DOTALL)
    texts = ["".join(json.loads(part) for part in re.findall(r'"(?:[^"\\]|\\.)*"', code)) for code in data]
    return list(zip(names, texts, strict=True))


@pytest.mark.parametrize(("queue", "data"), java_puts(), ids=["txt2img", "img2img"])
def test_06_the_requests_of_the_java_program_are_queued(documented: Documented, queue: str, data: str):
    address = f"{documented.url}/api/predict/{queue.replace('<service_name>', 'sd_async')}"
    member = {"X-EAS-QueueService-Redis-Uid": "b6f0", "X-EAS-QueueService-Redis-Gid": "eas"}
    indexes = []
    for number in range(5):
        put = requests.post(
            address, data.replace(PICTURES, documented.pictures).encode(), timeout=60,
            headers={"Authorization": documented.queue_token, **member},
            params={"task_id": f"{queue.rpartition('/')[2]}_{number}"},
        )  # fmt: skip
        assert put.status_code == 200 and len(put.headers["X-Eas-Queueservice-Request-Id"]) == 36
        indexes.append(int(put.text))
    assert indexes == sorted(set(indexes))


SUBSCRIBED = """
import json
import oss2
from oss2.credentials import EnvironmentVariableCredentialsProvider
from eas_prediction import QueueClient

sink_queue = QueueClient('139699392458****.cn-hangzhou.pai-eas.aliyuncs.com', 'sd_async/sink')
sink_queue.set_token('<token>')
sink_queue.init()

mount_path = "/code/stable-diffusion-webui/data-oss"
oss_url = "oss://<examplebucket>/aohai-singapore"
# Alibaba Cloud アカウントの AccessKey ペアは、すべての API 操作に対する権限を持っています。これらの認証情報を使用して OSS で操作を実行することは、高いリスクを伴う操作です。RAM ユーザーを使用して API 操作を呼び出すか、日常の O&M を実行することを推奨します。RAM ユーザーを作成するには、RAM コンソールにログインしてください。
auth = oss2.ProviderAuth(EnvironmentVariableCredentialsProvider())
# この例では、中国 (杭州) リージョンのエンドポイントを使用します。実際の エンドポイントを指定してください。
bucket = oss2.Bucket(auth, 'http://oss-cn-hangzhou.aliyuncs.com', '<examplebucket>')

watcher = sink_queue.watch(0, 5, auto_commit=False)
for x in watcher.run():
    if 'task_id' in x.tags:
        print('index {} task_id is {}'.format(x.index, x.tags['task_id']))
    print(f'index {x.index} data is {x.data}')
    sink_queue.commit(x.index)
    try:
        data = json.loads(x.data.decode('utf-8'))
        for idx, path in enumerate(data['parameters']['image_url'].split(',')):
            url = path.replace(mount_path, oss_url)
            # OSS オブジェクトをオンプレミスのファイルシステムにダウンロードします。
            bucket.get_object_to_file(url[len("oss://<examplebucket>/"):], f'{x.index}-output-{idx}.png')
            print(f'save {url} to {x.index}-output-{idx}.png')
    except Exception as e:
        print(f'index {x.index} process data error {e}')
"""  # noqa: E501


def test_07_results_are_pushed_committed_and_their_pictures_got(
    documented: Documented, client_python: Path, tmp_path: Path
):
    queue_ten(documented, tmp_path)
    changes = {
        "139699392458****.cn-hangzhou.pai-eas.aliyuncs.com": documented.url.removeprefix("http://"),
        "<token>": documented.queue_token,
        "<examplebucket>": "examplebucket",
    }
    tasks = {f"task_id is {kind}_{number}\n" for kind in ("txt2img", "img2img") for number in range(5)}
    said = documented.listen(
        client_python, SUBSCRIBED, changes, tmp_path,
        until=lambda text: all(task in text for task in tasks) and text.count("\nsave ") >= len(tasks),
    )  # fmt: skip
    saved = re.findall(r"^save oss://examplebucket/aohai-singapore/outputs/(\S+) to (\S+)$", said, re.MULTILINE)
    assert any(path.startswith("txt2img/txt2img-images/") for path, _ in saved)
    assert any(path.startswith("img2img/img2img-images/") for path, _ in saved)
    assert all(Image.open(tmp_path / name).size == (512, 512) for _, name in saved)


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
"""


def assert_paths(documented: Documented, answer: dict[str, Any], kind: str) -> None:
    """A grid and two pictures with seeds that follow each other, and each of them in the bucket."""
    mount, seeds = f"{MOUNT}-oss", answer["parameters"]["seed"].split(",")
    assert answer["images"] == [] and answer["parameters"]["error_msg"] == "" and answer["parameters"]["status"] == 0
    assert re.fullmatch(
        rf"{mount}/outputs/{kind}-grids/{DATE}/grid-{NAME}\.png"
        + "".join(rf",{mount}/outputs/{kind}-images/{DATE}/{NAME}-{seed}\.png" for seed in seeds),
        answer["parameters"]["image_url"],
    )
    assert len(seeds) == 2 and int(seeds[1]) == int(seeds[0]) + 1
    assert all(file.is_file() for file in documented.objects(answer, mount))


def test_09_a_request_with_checkpoint_folder_and_vae(documented: Documented):
    assert_paths(documented, documented.request("/sdapi/v1/txt2img", body_of(TXT2IMG)), "txt2img")


CURL_SAVED = """
# 同期 API を呼び出してモデルをテストします。
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
"""


def test_10_the_same_by_curl(documented: Documented, tmp_path: Path):
    said = documented.shell(CURL_SAVED, changes(documented), tmp_path)
    assert_paths(documented, json.loads(said), "txt2img")


CURL_QUEUED = """
# データを非同期キューに送信します。
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


def test_11_the_same_queued_by_curl(documented: Documented, tmp_path: Path):
    assert documented.shell(CURL_QUEUED, queue_changes(documented), tmp_path).isdecimal()
    assert documented.queued_result("14837")["parameters"]["image_url"].startswith("tmp/outputs/txt2img-grids/")


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
  "steps": 20, # サンプリングステップ
  "seed": 111,
  "subseed": 111, # バリエーションシード
  "subseed_strength": 0, # バリエーション強度
  "seed_resize_from_h": 0, # 高さからシードをリサイズ
  "seed_resize_from_w": 0, # 幅からシードをリサイズ
  "seed_enable_extras": false, # エクストラ
  "sampler_name": "DDIM", # サンプリング方法
  "cfg_scale": 7.5, # CFG スケール
  "restore_faces": true, # 顔を復元
  "tiling": false, # タイリング
  "init_images": [], # image base64 str, default None
  "mask_blur": 4, # マスクぼかし
  "resize_mode": 1, # 0 just resize, 1 crop and resize, 2 resize and fill, 3 just resize
  "denoising_strength": 0.75, # ノイズ除去強度
  "inpainting_mask_invert": 0, #int, index of ['Inpaint masked', 'Inpaint not masked'], マスクモード
  "inpainting_fill": 0, #index of ['fill', 'original', 'latent noise', 'latent nothing'], マスクされたコンテンツ
  "inpaint_full_res": 0, # index of ["Whole picture", "Only masked"], インペイントエリア
  "inpaint_full_res_padding": 32, #minimum=0, maximum=256, step=4, value=32, Only masked padding, pixels
  #"image_cfg_scale": 1, # スケールでリサイズ
  #"script_name": "Outpainting mk2", # スクリプト名。スクリプトを使用しない場合はこのフィールドをスキップします。
  #"script_args": ["Outpainting", 128, 8, ["left", "right", "up", "down"], 1, 0.05] # スクリプトのパラメーターを次の順序で指定します:固定フィールド、ピクセル、mask_blur、方向、noise_q、および color_variation。
}
"""  # noqa: E501


def test_12_a_picture_to_begin_from_is_named_by_its_address(documented: Documented):
    answer = documented.request("/sdapi/v1/img2img", body_of(IMG2IMG, {PICTURES: documented.pictures}))
    assert_paths(documented, answer, "img2img")


CONTROLNET = """
{
  "alwayson_scripts": {
    "sd_model_checkpoint": "deliberate_v2.safetensors", # モデル名。
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
  # 主要なパラメーター。
  "prompt": "girls",
  "batch_size": 1,
  "n_iter": 2,
  "width": 576,
  "height": 576,
  "negative_prompt": "ugly, out of frame"
}
"""
DATASET = "https://pai-aigc-dataset.oss-cn-hangzhou.aliyuncs.com"


def test_13_a_control_picture_is_named_by_its_address(documented: Documented):
    answer = documented.request("/sdapi/v1/txt2img", body_of(CONTROLNET, {DATASET: documented.pictures}))
    assert_paths(documented, answer, "txt2img")
    for path in answer["parameters"]["image_mask_url"].split(","):
        assert re.fullmatch(rf"{MOUNT}-oss/outputs/controlnet_mask/{DATE}/\d{{5,}}\.png", path)
