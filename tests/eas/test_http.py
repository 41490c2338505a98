"""The queue service over HTTP: what each call answers, word for word, and what a wrong one does not do."""

from __future__ import annotations

import base64
import re
from urllib.parse import quote

import pytest
from django.test import Client

from accounts.services import token_revoke
from renderjobs.models import EasFrame, EasQueue, EasService
from tests.eas.calls import PROTOBUF, Calls, signature
from tests.factories import a_caller, an_eas_service

pytestmark = pytest.mark.django_db
FRAME_300 = bytes.fromhex(
    "08ac02 120c0a077461736b5f6964120161 120e0a09726571756573744964120172 1a027b7d".replace(" ", "")
)
"""Index 300, tags task_id=a and requestId=r, data ``{}``: three independent encoders agree."""


@pytest.fixture
def service() -> EasService:
    return an_eas_service()


@pytest.fixture
def requests(service) -> Calls:
    return Calls.to(service)


@pytest.fixture
def results(service) -> Calls:
    return Calls.to(service, "sink")


def test_a_put_answers_with_digits_alone_and_names_the_request(requests):
    answer = requests.call("POST", {"task_id": "t0"}, path="/sdapi/v1/txt2img", body=b'{"prompt": "x"}')
    assert (answer.status_code, answer.content) == (200, b"1")
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    row = EasFrame.objects.get()
    assert row.tags == {"task_id": "t0", "requestId": answer["X-Eas-Queueservice-Request-Id"]}
    assert (row.path, bytes(row.data)) == ("/sdapi/v1/txt2img", b'{"prompt": "x"}')


def test_both_queues_count_by_themselves_and_never_use_an_index_twice(requests, results):
    assert [requests.put(), requests.put(), results.put()] == [1, 2, 1]
    requests.call("DELETE", {"_index_": 100, "_trunc_": "true"})
    assert requests.put() == 3


def test_a_request_id_of_the_clients_own_is_kept(requests):
    answer = requests.call("POST", {"requestId": "mine"}, body=b"x")
    assert answer["X-Eas-Queueservice-Request-Id"] == EasFrame.objects.get().request_id == "mine"


def test_get_takes_frames_out_and_json_carries_base64(results):
    results.put(b"\x00\xff", task_id="ä")
    (frame,) = results.get()
    assert frame["index"] == 1 and base64.b64decode(frame["data"]) == b"\x00\xff" and frame["tags"]["task_id"] == "ä"
    nothing = results.call("GET", {"_index_": 0})
    assert (nothing.status_code, nothing.content) == (204, b"")


def test_get_leaves_frames_without_auto_delete(results):
    results.put()
    assert len(results.get(_auto_delete_="false")) == len(results.get()) == 1
    assert results.length() == 0


def test_a_raw_get_answers_with_the_data_of_one_frame(results):
    results.put(b"raw bytes", requestId="r")
    answer = results.call("GET")
    assert (answer.content, answer["X-Eas-Queueservice-Request-Id"]) == (b"raw bytes", "r")


def test_frames_come_by_priority_then_index(results):
    for number, priority in enumerate((0, 1, 0, 1)):
        results.put(str(number).encode(), _priority_=priority)
    assert [frame["index"] for frame in results.get(_length_=10)] == [2, 4, 1, 3]


def test_a_priority_may_come_in_the_header_the_attributes_name(results):
    header = results.attributes()["meta.header.priority"]
    results.call("POST", body=b"x", **{header: "1"})
    assert EasFrame.objects.get().priority == 1


def test_a_length_beyond_what_one_answer_holds_is_no_error(results):
    results.put()
    assert len(results.get(_length_=10**6)) == 1


def test_get_filters_by_index_and_by_tags(results):
    for number in range(4):
        results.put(task_id=str(number % 2), requestId=f"r{number}")
    assert [frame["index"] for frame in results.get(_index_=3, _length_=9, _auto_delete_="false")] == [3, 4]
    assert [frame["index"] for frame in results.get(_index_=-1, _length_=9, _auto_delete_="false")] == [4]
    assert [frame["index"] for frame in results.get(task_id="1", _length_=9, _auto_delete_="false")] == [2, 4]
    assert [frame["index"] for frame in results.get(requestId="r2", _auto_delete_="false")] == [3]
    assert results.get(requestId="r2", task_id="1") == []


def test_protobuf_frames_are_the_published_bytes(results):
    EasQueue.objects.filter(kind="sink").update(last_index=299)
    results.put(b"{}", task_id="a", requestId="r")
    answer = results.call("GET", {"_index_": 0}, Accept=PROTOBUF)
    assert answer["Content-Type"] == PROTOBUF
    assert answer.content == b"\x0a\x25" + FRAME_300


def test_attributes_are_texts_in_json_and_protobuf(results):
    results.put()
    found = results.attributes()
    assert all(isinstance(value, str) for value in found.values())
    assert {name: found[name] for name in ("meta.name", "meta.state", "meta.maxPayloadBytes", "stream.length")} == {
        "meta.name": "sd_async/sink",
        "meta.state": "Normal",
        "meta.maxPayloadBytes": "1048576",
        "stream.length": "1",
    }
    assert found["meta.header.user"] == "X-EAS-QueueService-Redis-Uid"
    assert found["meta.header.group"] == "X-EAS-QueueService-Redis-Gid"
    binary = results.call("GET", {"_attrs_": "true"}, Accept=PROTOBUF).content
    assert bytes.fromhex("0a120a0d73747265616d2e6c656e677468120131") in binary


def test_truncating_at_the_last_entry_and_one_empties_the_queue(results):
    for _ in range(3):
        results.put()
    assert results.call("DELETE", {"_index_": 3, "_trunc_": "true"}).content == b"OK"
    assert results.attributes()["stream.firstEntry"] == "3"
    results.call("DELETE", {"_index_": int(results.attributes()["stream.lastEntry"]) + 1, "_trunc_": "true"})
    found = results.attributes()
    assert (found["stream.length"], found["stream.firstEntry"], found["stream.lastEntry"]) == ("0", "0", "3")


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_commit_and_delete_take_several_indexes_and_pass_over_what_is_gone(results, method):
    for _ in range(3):
        results.put()
    answer = results.call(method, {"_indexes_": "1,3,77"})
    assert (answer.status_code, answer.content) == (200, b"OK")
    assert [frame["index"] for frame in results.get(_length_=9)] == [2]


def test_negative_is_accepted_with_its_form(results):
    results.put()
    form = b"_code_=Shutdown&_reason_=leaving"
    answer = results.call("PUT", {"_indexes_": "1", "_negative_": "true"}, body=form)
    assert (answer.status_code, answer.content, results.length()) == (200, b"OK", 1)


def test_search_says_how_many_wait_in_front(requests):
    for priority in (0, 0, 1):
        requests.put(_priority_=priority)
    asked = requests.call("GET", {"_search_": "true", "_index_": 2})
    assert asked.content == b'{"ConsumerId":"","IsPending":false,"WaitCount":2}'
    unknown = requests.call("GET", {"_search_": "true", "_index_": 99})
    assert (unknown.status_code, unknown.content) == (404, b"no data in stream")


def test_count_knows_priority_and_tags(results):
    results.put(kind="a")
    results.put(kind="a", _priority_=1)
    assert results.call("GET", {"_count_": "true", "kind": "a"}).content == b"2"
    assert results.call("GET", {"_count_": "true", "_priority_": 1}).content == b"1"


def test_a_bare_get_on_the_input_takes_nobodys_request_away(requests):
    requests.put()
    for path in ("", "/sdapi/v1/sd-models"):
        assert requests.call("GET", path=path).status_code == 400
    assert requests.length() == 1


WRONG = {
    "an index": ("GET", {"_index_": "x"}, 400),
    "a negative index": ("GET", {"_index_": "-2"}, 400),
    "a length": ("GET", {"_length_": "0"}, 400),
    "a duration": ("GET", {"_timeout_": "soon"}, 400),
    "no indexes": ("PUT", {}, 400),
    "words for indexes": ("DELETE", {"_indexes_": "1,a"}, 400),
    "a priority": ("POST", {"_priority_": "7"}, 400),
    "a tag's length": ("POST", {"task_id": "x" * 1025}, 400),
    "too many tags": ("POST", {f"tag{number}": 1 for number in range(65)}, 400),
    "a thousand parameters and one": ("GET", {f"_p{number}_": 1 for number in range(1001)}, 400),
    "a zero byte": ("POST", {"task_id": "a\0"}, 400),
    "an end of the stream": ("POST", {"_eos_": "true"}, 403),
    "a watch's window": ("GET", {"_watch_": "true", "_window_": "0"}, 400),
    "a method": ("PATCH", {}, 405),
    "a code": ("PUT", {"_indexes_": "1", "_negative_": "true"}, 400),
    "an index of thousands of digits": ("DELETE", {"_indexes_": "9" * 5000}, 400),
    "a priority of thousands of digits": ("POST", {"_priority_": "1" * 5000}, 400),
    "a request id that no header can answer": ("POST", {"requestId": "a\nX-Evil: 1"}, 400),
    "a request id beyond ASCII": ("POST", {"requestId": "ä"}, 400),
    "a request id with spaces around": ("POST", {"requestId": " a "}, 400),
    "a request id too long": ("POST", {"requestId": "x" * 201}, 400),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_answered_in_plain_text_and_changes_nothing(results, what):
    results.put()
    method, query, status = WRONG[what]
    answer = results.call(method, query, body=b"_code_=" + b"x" * 30)
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"].startswith("text/plain") and answer.content
    assert results.length() == 1, "a client repeats a refused call six times"


@pytest.mark.parametrize("path", ["/a\0b", "/" + "x" * 200], ids=["a zero byte", "too long"])
def test_a_web_path_that_cannot_be_kept_is_refused(requests, path):
    assert requests.call("POST", path=quote(path)).status_code == 400 and requests.length() == 0


def test_a_service_whose_name_is_no_text_is_unknown(requests):
    named = Calls("/api/predict/a%00b", requests.token)
    assert (named.call("POST").status_code, named.call("GET", Accept="text/html").status_code) == (404, 404)


@pytest.mark.parametrize("slashed", ["/sink/", "//sink", "//sink//"])
def test_a_slash_too_many_leads_to_the_same_queue_and_never_to_another(requests, results, slashed):
    requests.put()
    results.put(b"a result")
    found = Calls(requests.path + slashed, requests.token).call("GET", {"_timeout_": "0s"})
    assert found.content == b"a result" and (requests.length(), results.length()) == (1, 0)


@pytest.mark.parametrize("slashed", ["//sdapi/v1/txt2img", "/sdapi/v1/txt2img/"])
def test_an_address_pasted_with_its_last_slash_names_the_same_web_path(requests, slashed):
    requests.put(path=slashed)
    assert EasFrame.objects.get().path == "/sdapi/v1/txt2img"


def test_a_frame_above_the_limit_is_refused_with_advice(results):
    EasService.objects.update(max_payload_bytes=1024)
    answer = results.call("POST", body=b"x" * 1025)
    assert answer.status_code == 413 and b"1025" in answer.content and b"1024" in answer.content
    assert b"save_dir" in answer.content and results.length() == 0
    assert results.put(b"x" * 1024)


def test_a_full_queue_refuses_until_there_is_room(results):
    EasService.objects.update(max_frames=2)
    assert [results.put(), results.put()] == [1, 2]
    assert results.call("POST", body=b"x").status_code == 429
    results.get()
    assert results.put() == 3


@pytest.mark.parametrize("token", ["", "nobody's", "Bearer nobody's", "EAS abc="])
def test_without_a_token_nothing_is_said_about_services(service, token):
    for name in (service.name, "unknown"):
        answer = Client().post(f"/api/predict/{name}", headers={"Authorization": token})
        assert answer.status_code == 401


def test_a_foreign_service_is_answered_as_an_unknown_one(service):
    stranger = Calls.to(an_eas_service("theirs", team="rivals"))
    for kind in ("", "/sink"):
        unknown = Calls(f"/api/predict/nobody{kind}", stranger.token)
        foreign = Calls(f"/api/predict/{service.name}{kind}", stranger.token)
        for method, query in (
            ("POST", {}),
            ("GET", {"_index_": 0}),
            ("GET", {"_attrs_": "true"}),
            ("GET", {"_search_": "true", "_index_": 1}),
            ("GET", {"_count_": "true"}),
            ("PUT", {"_indexes_": "1"}),
            ("PUT", {"_indexes_": "1", "_negative_": "true"}),
            ("DELETE", {"_indexes_": "1"}),
            ("DELETE", {"_index_": 9, "_trunc_": "true"}),
        ):
            answers = [calls.call(method, query) for calls in (unknown, foreign)]
            assert [answer.status_code for answer in answers] == [404, 404], (method, query)
            assert answers[0].content == answers[1].content.replace(service.name.encode(), b"nobody")
    assert not EasFrame.objects.exists()


def test_a_stopped_service_keeps_its_frames_and_answers_404(service, results):
    results.put()
    EasService.objects.update(enabled=False)
    assert results.call("POST", body=b"x").status_code == 404
    EasService.objects.update(enabled=True)
    assert results.length() == 1


def test_a_members_token_works_and_one_without_the_scope_does_not(service):
    member = a_caller(service.team.name, "ada")
    assert Calls(f"/api/predict/{service.name}", member.token.text).put() == 1
    reader = a_caller(service.team.name, "bob", scopes=["jobs:read"])
    assert Calls(f"/api/predict/{service.name}", reader.token.text).call("POST").status_code == 403


def test_a_revoked_token_is_refused(service, requests):
    token_revoke(token=service.token)
    assert requests.call("POST").status_code == 401


def test_a_predict_clients_signature_is_accepted_and_a_changed_body_is_not(service, requests):
    path, date = f"/api/predict/{service.name}/sdapi/v1/txt2img", "Mon, 01 Jul 2024 08:00:00 GMT"
    signed = signature(service.token.text, path=path, body=b'{"a": 1}', date=date)
    headers = {"Authorization": signed, "Date": date, "Content-Type": "application/octet-stream"}
    for body, status in ((b'{"a": 1}', 200), (b'{"a": 2}', 401)):
        answer = Client().generic("POST", path, body, content_type="application/octet-stream", headers=headers)
        assert answer.status_code == status
    assert EasFrame.objects.count() == 1


def test_an_index_is_a_plain_number_for_every_client(results):
    assert re.fullmatch(rb"[1-9][0-9]*", results.call("POST", body=b"x").content)
