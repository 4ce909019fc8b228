"""A target at a distance: several requests are under way at once, and a real standby ends up equal all the same."""
import asyncio
import threading

from servers import wait_for

WAY_SECONDS = 0.04  # each way


class Distance:
    """Forwards to a local port, every byte later by the way's time."""

    def __init__(self, port):
        self.target, self.loop, self.port = port, asyncio.new_event_loop(), None
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self.ready.wait(10)
        self.uri = f"http://127.0.0.1:{self.port}"

    def _run(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._serve())
        self.loop.run_forever()
        tasks = asyncio.all_tasks(self.loop)
        for t in tasks:
            t.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.close()

    async def _serve(self):
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()

    async def _accept(self, reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        for a, b in ((reader, far_writer), (far_reader, writer)):
            asyncio.ensure_future(self._carry(a, b))

    async def _carry(self, reader, writer):
        """Reads go on while earlier bytes are on their way."""
        way = asyncio.Queue(maxsize=1000)

        async def arrive():
            while True:
                due, data = await way.get()
                await asyncio.sleep(max(0, due - self.loop.time()))
                if not data:
                    writer.close()
                    return
                writer.write(data)
                await writer.drain()
        arriving = asyncio.ensure_future(arrive())
        try:
            while data := await reader.read(1 << 18):
                await way.put((self.loop.time() + WAY_SECONDS, data))
            await way.put((self.loop.time() + WAY_SECONDS, b""))
            await arriving
        except OSError:
            arriving.cancel()
            writer.close()

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


def window_bytes(cdc):
    return max([v for k, v in cdc.metrics().items() if k.startswith("milvus_cdc_target_window_bytes")] or [0])


def test_far_target(lab, writing):
    cdc = lab.cdc(limits={"batchBytes": "64KiB"})  # so that little data makes many requests
    far = Distance(lab.pair.target.port)
    try:
        task = cdc.create(far, ["*"])
        a, b = lab.table("a"), lab.table("b", "text_key")
        with writing(a, rows=400) as wa, writing(b, rows=400) as wb:
            for w in (wa, wb):
                w.wait_batches(10)
            wait_for("several requests at a time", lambda: window_bytes(cdc) > 64 << 10, 30)
            cdc.restart(hard=True)
            for w in (wa, wb):
                w.wait_batches(10)
        lab.equal(cdc, task, [a, b], timeout=180)
        assert window_bytes(cdc) > 64 << 10
    finally:
        far.stop()
