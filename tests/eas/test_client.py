"""The vendor's published client against the running server, as its users' programs call it."""

from __future__ import annotations

import base64
import http.client
import json
import queue
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from renderjobs.compat.eas.views import EARLY_SECONDS
from tests.eas.conftest import EasServer
from tests.services import wait_until

pytestmark = pytest.mark.embedded
DEFAULT_TIMEOUT_SECONDS = 5
"""Of a get that names none."""


def put(server: EasServer, count: int, *, start: int = 0) -> list[int]:
    """Frames "0", "1", … into the sink; their indexes."""
    with requests.Session() as session:
        session.headers["Authorization"] = server.token
        answers = [session.post(server.sink, data=str(number).encode()) for number in range(start, start + count)]
    assert all(answer.status_code == 200 for answer in answers)
    return [int(answer.text) for answer in answers]


def length(server: EasServer) -> str:
    return attributes(server)["stream.length"]


def attributes(server: EasServer) -> dict[str, str]:
    return requests.get(f"{server.sink}?_attrs_=true", headers={"Authorization": server.token}, timeout=60).json()


def texts(frames: list) -> list[str]:
    return [data for _, data, _ in frames]


def test_it_puts_gets_and_searches(server):
    made, before, by_id, by_tag, both, after, nothing = server.run("puts_gets_and_searches")
    first, second = made["indexes"]
    frame = [first, "one", {"task_id": "t 1/ä", "requestId": made["request_id"]}]
    assert second == first + 1 and by_id == by_tag == [frame]
    assert before == {"length": "2", "found": {"ConsumerId": "", "IsPending": False, "WaitCount": 1}}
    assert texts(both) == ["two", "one"] and after == {"left": "0", "found": {}}
    assert nothing["nothing"] == [] and 1 - EARLY_SECONDS <= nothing["seconds"] < DEFAULT_TIMEOUT_SECONDS


def test_a_get_waits_for_what_comes_within_the_clients_own_timeout(server):
    (found,) = server.run("gets_while_somebody_puts")
    assert texts(found["frames"]) == ["late"] and found["seconds"] >= 1


def test_it_truncates_and_deletes(server):
    assert server.run("truncates_and_deletes") == [{"left": [2]}]


def test_it_is_told_the_status_of_a_refusal(server):
    wrong, unknown = server.run("is_refused")
    assert wrong[0] == 401 and unknown[0] == 404


def test_a_signed_predict_client_puts(server):
    (found,) = server.run("predicts_with_a_signature")
    assert found["index"] >= 1 and found["length"] == "1"


@pytest.mark.parametrize("auto_commit", [False, True], ids=["manual", "automatic"])
def test_it_watches_and_commits(server, auto_commit):
    indexes = put(server, 4)
    program = server.start("watches", count=8, auto_commit=auto_commit)
    early = [program.said() for _ in range(4)]
    indexes += put(server, 4, start=4)
    frames = early + program.all_said()
    assert texts(frames) == [str(number) for number in range(8)] and [index for index, _, _ in frames] == indexes
    assert length(server) == "0"


def test_it_loses_its_connection_and_continues(server):
    put(server, 12)
    frames = server.run("watches", count=12, cut_after=4, window=3)
    assert texts(frames) == [str(number) for number in range(12)] and length(server) == "0"


def test_a_window_of_frames_is_all_a_consumer_gets_without_committing(server):
    put(server, 5)
    program = server.start("watches", count=5, window=2, commit=False)
    assert [program.said()[1] for _ in range(2)] == ["0", "1"]
    with pytest.raises(queue.Empty):  # nothing more is said
        program.said(seconds=1.5)


def test_frames_of_a_consumer_that_died_go_to_another_of_its_group(server):
    put(server, 3)
    dying = server.start("watches", count=9, commit=False)
    assert [dying.said()[1] for _ in range(3)] == ["0", "1", "2"]
    dying.process.kill()
    assert texts(server.run("watches", count=3)) == ["0", "1", "2"] and length(server) == "0"


def test_two_consumers_of_one_group_share_the_frames(server):
    consumers = [server.start("watches", count=10, window=2, pause=0.02) for _ in range(2)]
    wait_for_consumers(server, 2)
    put(server, 20)
    shares = [texts(consumer.all_said()) for consumer in consumers]
    assert [len(share) for share in shares] == [10, 10]
    assert sorted(map(int, shares[0] + shares[1])) == list(range(20)) and length(server) == "0"


def test_two_groups_get_every_frame_each(server):
    consumers = [server.start("watches", count=6, user={"gid": group}) for group in ("one", "two")]
    wait_for_consumers(server, 2)
    put(server, 6)
    assert [texts(consumer.all_said()) for consumer in consumers] == [[str(number) for number in range(6)]] * 2
    assert length(server) == "0"


def wait_for_consumers(server: EasServer, count: int) -> None:
    """Until there are so many, counting those in their grace."""

    def are_there() -> bool:
        texts = attributes(server).values()
        return sum("Status: Running" in text or "Status: Leaving" in text for text in texts) == count

    wait_until(are_there, what=f"{count} consumers")


def test_a_server_killed_in_the_middle_loses_and_repeats_nothing_that_was_committed(server):
    put(server, 10)
    program = server.start("watches", count=20, window=3, pause=0.05)
    before = [program.said() for _ in range(6)]
    server.platform.kill("web")
    server.platform.start_web()
    put(server, 10, start=10)
    frames = before + program.all_said()
    seen = texts(frames)
    # What was sent and not committed at that moment may come twice; nothing is missing, and all are gone at the end.
    assert sorted(set(map(int, seen))) == list(range(len(set(seen))))
    assert len(seen) - len(set(seen)) <= 3 and seen[:4] == ["0", "1", "2", "3"]
    assert not set(seen[:5]) & set(seen[6:])


FILL = """
from renderjobs.compat.eas import queues
from renderjobs.models import EasService
sink = queues.queue_of(EasService.objects.get(name={service!r}), "sink")
queues.frames_put(queue=sink, frames=[queues.NewFrame(data=b"%d" % number) for number in range(1000)])
"""


@pytest.mark.parametrize("auto_commit", [False, True], ids=["manual", "automatic"])
def test_a_thousand_waiting_frames_reach_a_watcher_with_window_5_in_order(server, auto_commit):
    server.platform.manage("shell", "-c", FILL.format(service=server.service))
    frames = server.run("watches", count=1000, window=5, auto_commit=auto_commit)
    assert texts(frames) == [str(number) for number in range(1000)] and length(server) == "0"


def test_two_thousand_concurrent_puts_are_all_accepted_once(server):
    def put_fifty(client: int) -> list[tuple[int, str]]:
        """One connection, as a pool of the client's keeps it; indexes with what was put."""
        connection = http.client.HTTPConnection("127.0.0.1", server.platform.port, timeout=180)
        made = []
        for number in range(50):
            text = f"{client}-{number}"
            headers = {"Authorization": server.token}
            connection.request("POST", f"/api/predict/{server.service}/sink", text.encode(), headers)
            answer = connection.getresponse()
            made.append((int(answer.read()), text))
            assert answer.status == 200
        connection.close()
        return made

    with ThreadPoolExecutor(40) as clients:
        made = list(clients.map(put_fifty, range(40)))
    assert all(indexes == sorted(indexes) for indexes in ([index for index, _ in mine] for mine in made))
    everything = dict(pair for mine in made for pair in mine)
    assert len(everything) == len(set(everything.values())) == 2000 and length(server) == "2000"
    address = f"{server.sink}?_length_=1000&_raw_=false"
    stored = {}
    for _ in range(2):
        for frame in requests.get(address, headers={"Authorization": server.token}).json():
            stored[frame["index"]] = base64.b64decode(frame["data"]).decode()
    assert stored == everything


def test_a_request_whose_worker_is_killed_twice_has_one_job_and_one_result(server):
    """The process of queued requests dies while the job renders; the next one finds the job by the frame."""
    platform = server.platform
    address = f"{server.queue}/sdapi/v1/txt2img?task_id=t0"
    body = {"prompt": "a ring", "width": 64, "height": 64, "steps": 8, "seed": 3}
    server.start_requests()
    answer = requests.post(address, json=body, headers={"Authorization": server.token}, timeout=60)
    token = {"Authorization": f"Bearer {platform.token()}"}

    def jobs() -> list:
        listed = requests.get(f"{platform.address}/api/v1/jobs", headers=token, timeout=60).json()["results"]
        return [job for job in listed if job["service"] == server.service]

    wait_until(jobs, what="The job")
    for _ in range(2):
        platform.kill("requests")
        in_database(server, EXPIRE)
        server.start_requests()
        wait_until(lambda: in_database(server, TAKEN), what="The next process taking the request")
    platform.start_worker()  # not before, or the job would have ended by now
    (frame,) = server.run("watches", count=1)
    made = json.loads(frame[1])
    assert frame[2] == {"task_id": "t0", "requestId": answer.headers["X-Eas-Queueservice-Request-Id"]}
    assert len(made["images"]) == 1 and json.loads(made["info"])["seed"] == 3
    assert len(jobs()) == 1 and length(server) == "0"
    platform.kill("worker")
    platform.kill("requests")
    platform.assert_invariants()


OF_THE_SERVICE = """queue_id IN (
    SELECT queue.id FROM renderjobs_easqueue queue JOIN renderjobs_easservice service ON service.id = queue.service_id
    WHERE service.name = ?)"""
EXPIRE = f"UPDATE renderjobs_easframe SET taken_until = '2020-01-01 00:00:00' WHERE taken_until > '2020' AND {OF_THE_SERVICE}"
"""What a lost process has in hand is given up half a minute later; nothing is changed by saying so at once."""
TAKEN = f"SELECT 1 FROM renderjobs_easframe WHERE taken_until > '2021' AND {OF_THE_SERVICE}"


def in_database(server: EasServer, statement: str) -> list[tuple]:
    connection = sqlite3.connect(server.platform.data_dir / "db.sqlite3", timeout=60, isolation_level=None)
    try:
        return connection.execute(statement, [server.service]).fetchall()
    finally:
        connection.close()
