"""An ordinary Milvus as the target that takes little at a time: size of a request, rates, quotas."""
import pytest
import yaml
from pymilvus import DataType as T, FieldSchema as F

from compare import CALL_ERRORS, short
from conftest import FOLDER
from servers import Milvus, wait_for
from test_snapshot import copied
from workload import Shape, Table, int_key, row_base, vector

LARGEST = 300_000  # bytes of a request; a row of WIDE has 3 kB, and one insert of 500 rows is one message in the log

WIDE = Shape(lambda: [int_key(), F("s", T.VARCHAR, max_length=4000), F("t", T.ARRAY, element_type=T.VARCHAR, max_length=64,
                                                                       max_capacity=8), vector()],
             lambda rnd, key: {**row_base(rnd, key), "s": rnd.choice("abc") * 3000, "t": ["x"] * rnd.randrange(4)}, shards_num=2)


def limits(y):
    y["proxy"].setdefault("grpc", {})["serverMaxRecvSize"] = LARGEST
    quota = y.setdefault("quotaAndLimits", {})
    quota["enabled"] = True
    dml = quota.setdefault("dml", {})
    dml["enabled"] = True
    for kind in ("insertRate", "upsertRate", "deleteRate"):
        dml[kind] = {"max": 1}  # MB/s


def deny(y, on):
    y["quotaAndLimits"].setdefault("limitWriting", {})["forceDeny"] = on


@pytest.fixture(scope="module")
def strict(pair):
    m = Milvus("strict", FOLDER / "strict", etcd=pair.etcd.address, channels=2, config=limits).start()
    yield m
    m.kill()


@pytest.fixture
def to(lab, strict):
    return lab.into(strict)


def wide_table(lab, suffix):
    t = Table(lab.name(suffix), WIDE, lab.source.alias(), lab.rnd)
    lab.made.append(("default", t.name))
    return t


def said(cdc, task, text, timeout=60):
    """In get, as the target said it."""
    return wait_for(f"{text!r} in the reason", lambda: text in cdc.task(task).get("reason", ""), timeout, 0.02)


def assert_nothing_was_in_doubt(cdc):
    log = cdc.log.read_text()
    assert "the target refuses a request for now" in log
    assert "a request to the target failed" not in log, short(log[log.index("a request to the target failed") - 100:], 600)


def test_rows(to, cdc, strict):
    task = to.create(cdc, ["*"], target=strict)
    t = wide_table(to, "a")
    for _ in range(8):
        t.put(500)
    said(cdc, task, "rate limit")
    for _ in range(3):
        t.change(t.some_keys(200))
        t.remove(t.some_keys(100))
    to.equal(cdc, task, [t])
    assert "reason" not in cdc.task(task)
    assert_nothing_was_in_doubt(cdc)


def test_rows_from_before(to, cdc, strict):
    t = wide_table(to, "a")
    for _ in range(6):
        t.put(500)
    task = to.create(cdc, [t.name], target=strict, start="snapshot")
    copied(cdc, task)
    cdc.wait_caught_up(task)
    to.equal(cdc, task, [t])
    log = cdc.log.read_text()
    assert "the copy has to wait" in log and "rate limit" in log


def configure(strict, on):
    path = strict.data / "configs" / "milvus.yaml"
    y = yaml.safe_load(path.read_text())
    deny(y, on)
    path.write_text(yaml.safe_dump(y))
    strict.restart(hard=True)


def denies(table):
    """It begins some seconds after its start."""
    try:
        table.put(1)
        return False
    except CALL_ERRORS as e:
        return "deactivated by the administrator" in str(e)


def test_writes_are_denied_for_a_while(to, cdc, strict):
    """The rows come into being while nothing can be written, so that the restarts of the target concern none of them."""
    task = to.create(cdc, ["*"], target=strict)
    own = Table(to.name("own"), WIDE, to.target.alias(), to.rnd, loaded=False)
    try:
        configure(strict, True)
        wait_for("the target denies writes", lambda: denies(own), 60, 0.5)
        t = wide_table(to, "a")
        for _ in range(3):
            t.put(50)
        t.remove(t.some_keys(10))
        said(cdc, task, "denies writes")
        cdc.restart()  # in time, see close_cdc
        said(cdc, task, "denies writes")
    finally:
        configure(strict, False)
    to.equal(cdc, task, [t])
    assert "reason" not in cdc.task(task)
