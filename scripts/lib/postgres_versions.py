"""Other versions of PostgreSQL than Debian's, for the tests: the server's programs from Maven, fetched once into
build/postgres-<version>."""
import platform
import tarfile
import zipfile

from brokers import fetch_jars
from servers import ROOT, Postgres

VERSIONS = {"13": "13.22.0", "14": "14.19.0"}
MACHINES = {"x86_64": "amd64", "aarch64": "arm64v8"}


class PostgresVersion(Postgres):
    """Major version 13 or 14. psql is Debian's, the package has none."""

    def __init__(self, folder, major):
        super().__init__(folder)
        artifact = f"embedded-postgres-binaries-linux-{MACHINES[platform.machine()]}"
        jars = fetch_jars(ROOT / "build" / f"postgres-{VERSIONS[major]}",
                          [("io.zonky.test.postgres", artifact, VERSIONS[major])])
        program = self.data / "program"  # where the server's user reaches it
        with zipfile.ZipFile(next(jars.glob("*.jar"))) as jar:
            name = next(n for n in jar.namelist() if n.endswith(".txz"))
            with jar.open(name) as packed, tarfile.open(fileobj=packed, mode="r:xz") as files:
                files.extractall(program)
        self.programs = program / "bin"
