"""The Go implementation of Milvus-CDC, for the benchmark: a program that the user built, no part of this project."""
import yaml

from servers import Cdc

KNOWN_FAULT = "the Go daemon spins after a pause or delete of a task: each figure is of a fresh process without one"


class GoCdc(Cdc):
    """
    Speaks the API of Cdc. Settings: those of its own template (server/configs/cdc.yaml), not the addresses.
    store: the prefix of its tasks in etcd; one used before brings its tasks back.
    """

    def __init__(self, folder, source, program, store, **settings):
        super().__init__(folder, source, program)
        self.name = "the Go milvus-cdc"
        self.config_path = self.dir / "configs" / "cdc.yaml"  # below its working directory, no flag changes that
        etcd = {"address": [f"http://{source.etcd}"]}
        self.config = {
            "address": f"127.0.0.1:{self.port}",
            "maxTaskNum": 100,
            "metaStoreConfig": {"storeType": "etcd", "etcd": etcd, "rootPath": store},
            "sourceConfig": {
                "etcd": {**etcd, "rootPath": source.root_path, "metaSubPath": "meta"},
                "readChanLen": 4,
                "defaultPartitionName": "_default",
                "replicateChan": source.replicate_channel,
                **self._queue(source),
            },
            "maxNameLength": 256,
            "logLevel": "info",
            "batchMode": True,
            **settings,
        }

    @staticmethod
    def _queue(source):
        queue = source.queue.cdc(source)
        if "pulsar" in queue:
            queue["pulsar"].update(webAddress=f"127.0.0.1:{source.queue.broker.web_port}", maxMessageSize="5242880",
                                   tenant="public", namespace="default")
        return queue

    def start(self, timeout=60):
        self.config_path.parent.mkdir(exist_ok=True)
        self.config_path.write_text(yaml.safe_dump(self.config))
        self._spawn([self.program.resolve()], cwd=self.dir)
        self._wait_ready(lambda: self.api("list") is not None, timeout)
        return self
