"""The Pulsar port (test/unit/test_pulsar_live.c) on a real broker, which is also killed in the middle, asks for a
token, or speaks TLS."""
import os
import subprocess

import pytest

from brokers_pulsar import Pulsar, make_tls, make_token
from conftest import FOLDER
from servers import ROOT, remove_tree

PROGRAM = ROOT / "build" / "asan" / "test" / "test_pulsar_live"
HOME = FOLDER.with_name(FOLDER.name + "-pulsar-reader")  # FOLDER itself is emptied when the pair starts
SMALL_LEDGERS = {"managedLedgerMaxEntriesPerLedger": 20, "managedLedgerMinLedgerRolloverTimeMinutes": 0}


def run_live(broker, test, **env):
    """One test of the program; does what it prints as CONTROL."""
    env = dict(os.environ, MILVUS_CDC_REQUIRE_LIVE="1", PULSAR=broker.address, PULSAR_WEB=broker.web, **env)
    lines = []
    with subprocess.Popen([PROGRAM, test], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as p:
        try:
            for line in p.stdout:
                lines.append(line)
                if line.startswith("CONTROL restart"):
                    broker.restart(hard=True)
            code = p.wait(60)
        finally:
            p.kill()
    text = "".join(lines)
    print(text[-6000:])
    assert code == 0
    assert f"[       OK ] {test}" in text


@pytest.fixture(scope="session")
def pulsar():
    remove_tree(HOME)
    b = Pulsar(HOME / "plain", **SMALL_LEDGERS).start()
    yield b
    b.remove()


TESTS = """earliest_position_and_end topic_made_later batches_and_compression chunked_messages large_entries
    pause_bounds_what_is_held unload_loses_nothing removed_position_is_lost position_of_a_deleted_topic_is_lost
    all_removed
    retain_keeps_what_is_needed retain_at_the_begin_of_a_ledger retain_outlives_us partitioned_topics
    closing_leaves_nothing_behind broker_restart""".split()


@pytest.mark.parametrize("name", TESTS)
def test_live(pulsar, name):
    run_live(pulsar, name)


def test_token_and_tls(pulsar):
    """A broker that demands a token, on both its ports; its certificate is of an authority of its own."""
    folder = HOME / "secure"
    folder.mkdir(parents=True, exist_ok=True)
    ca, cert, key = make_tls(folder)
    secret, token = make_token(folder, "admin")
    b = Pulsar(folder, name="secure", token=token, tls=(ca, cert, key), secret=secret, **SMALL_LEDGERS).start()
    try:
        run_live(b, "token_and_tls", PULSAR_TOKEN=token, PULSAR_TLS=b.tls_address, PULSAR_CA=str(ca))
    finally:
        b.remove()
