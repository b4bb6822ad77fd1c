# SPDX-License-Identifier: Apache-2.0
"""The solver with operations made for it: what runs, how often, in which order, and what is left when it ends."""

from __future__ import annotations

import errno
import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from google.protobuf.message import Message

from teu.api.buildkit import errdefs_pb2
from teu.buildkit.cache import remote
from teu.buildkit.cache.remote import RemoteKeys
from teu.buildkit.cache.store import Store
from teu.buildkit.core.errors import Cancelled, Error, NotFound
from teu.buildkit.core.op import CacheMap, Context, Dependency, Gone, Record, Ref
from teu.buildkit.core.progress import Progress
from teu.buildkit.llb.load import Edge, Graph, Metadata, Vertex
from teu.buildkit.ops.roots import PathError
from teu.buildkit.solver.jobs import Solver
from teu.buildkit.solver.scheduler import copied


def sha(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class World:
    """Where results are: by their names, with how many hold each."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.values: dict[str, str] = {}
        self.held: Counter[str] = Counter()
        self.count = 0
        self.ran: list[str] = []
        self.finished: Counter[str] = Counter()
        self.now = 0
        self.most = 0

    def new(self, value: str) -> Held:
        with self.lock:
            self.count += 1
            name = f"r{self.count}"
            self.values[name] = value
            self.held[name] += 1
        return Held(self, name)

    def leaked(self) -> dict[str, int]:
        return {name: count for name, count in self.held.items() if count}


class Held:
    """A result."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self._name = name
        self.released = False

    @property
    def id(self) -> str:
        return self._name

    @property
    def value(self) -> str:
        assert not self.released
        return self.world.values[self._name]

    def clone(self) -> Held:
        with self.world.lock:
            assert not self.released
            self.world.held[self._name] += 1
        return Held(self.world, self._name)

    def release(self) -> None:
        with self.world.lock:
            assert not self.released, "released twice"
            self.released = True
            self.world.held[self._name] -= 1

    def describe(self) -> str:
        return self._name


@dataclass
class Step:
    """An operation: its value is a function of its inputs' values."""

    world: World
    name: str
    digest: str = ""
    content: tuple[int, ...] = ()  # inputs whose content counts
    selector: str = ""
    outputs: int = 1
    delay: float = 0.0
    fail: str = ""
    deaf: bool = False
    during: Callable[[Context], None] | None = None
    make: Callable[[list[str]], str] | None = None
    map_error: str = ""
    hash_error: str = ""
    also: tuple[str, ...] = ()
    inputs: int = 0

    def cache_key(self, context: Context) -> CacheMap:
        if self.map_error:
            raise NotFound(self.map_error)
        return CacheMap(
            self.digest or sha(self.name),
            tuple(
                Dependency(self.selector, self.hash if number in self.content else None)
                for number in range(self.inputs)
            ),
            self.also,
        )

    def hash(self, context: Context, ref: Ref) -> str:
        assert isinstance(ref, Held)
        if self.hash_error:
            raise NotFound(self.hash_error)
        with self.world.lock:
            self.world.ran.append(f"hash {self.name}")
        return sha("content " + ref.value)

    def load(self, context: Context, record: Record, output: int) -> Ref:
        if record.remote is not None:
            with self.world.lock:
                self.world.ran.append(f"pull {self.name}")
            return self.world.new(record.remote[-1]["annotations"]["value"])
        with self.world.lock:
            if record.id not in self.world.values:
                raise Gone(record.id)
            self.world.held[record.id] += 1
            self.world.ran.append(f"load {self.name}")
        return Held(self.world, record.id)

    def execute(self, context: Context, inputs: Sequence[Ref]) -> Sequence[Ref]:
        world = self.world
        with world.lock:
            world.ran.append(self.name)
            world.now += 1
            world.most = max(world.most, world.now)
        try:
            context.log(1, f"{self.name} begins\n".encode())
            if self.during is not None:
                self.during(context)
            if self.deaf:
                time.sleep(self.delay)
            elif self.delay and context.wait(self.delay):
                context.check()
            if self.fail:
                context.log(2, f"{self.fail}\n".encode())
                raise Error(self.fail)
            values = [one.value for one in inputs if isinstance(one, Held)]
            value = self.make(values) if self.make else f"{self.name}({','.join(values)})"
            with world.lock:
                world.finished[self.name] += 1
            return [world.new(value if not number else f"{value}#{number}") for number in range(self.outputs)]
        finally:
            with world.lock:
                world.now -= 1


@dataclass
class Drawing:
    """A graph in the making; names are its digests."""

    steps: dict[str, Step] = field(default_factory=dict)
    vertexes: dict[str, Vertex] = field(default_factory=dict)

    def add(self, step: Step, *inputs: str, ignore: bool = False, export: bool | None = None) -> str:
        step.inputs = len(inputs)
        edges = []
        for one in inputs:
            name, _, index = one.partition("#")
            edges.append(Edge(name, int(index or 0)))
        metadata = Metadata(ignore_cache=ignore, export_cache=export)
        self.steps[step.name] = step
        self.vertexes[step.name] = Vertex(step.name, step, tuple(edges), step.name, metadata, step.name)
        return step.name

    def graph(self, top: str) -> Graph:
        name, _, index = top.partition("#")
        needed: list[str] = []
        todo = [name]
        while todo:
            one = todo.pop()
            needed.append(one)
            todo += [edge.vertex for edge in self.vertexes[one].inputs]
        order = [one for one in self.vertexes if one in needed]
        return Graph({one: self.vertexes[one] for one in order}, Edge(name, int(index or 0)))


class Heard(Progress):
    """A build's progress that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[Any] = []
        self.logs: list[Any] = []
        self.statuses: list[Any] = []
        self.warnings: list[Any] = []

    def event(self, key: Hashable, event: Message) -> None:
        super().event(key, event)
        kinds = {"Vertex": self.states, "VertexLog": self.logs, "VertexStatus": self.statuses}
        kinds.get(type(event).__name__, self.warnings).append(event)

    def last(self, digest: str) -> Any:
        return [state for state in self.states if state.digest == digest][-1]


def resolve(vertex: Vertex) -> Any:
    return vertex.op


@dataclass
class House:
    world: World
    store: Store
    solver: Solver

    def build(self, graph: Graph, name: str = "job", **how: Any) -> str:
        with self.solver.job(name) as job:
            result = job.build(graph, **how)
            assert isinstance(result.ref, Held)
            value = result.ref.value
            result.release()
        return value

    def ran(self) -> list[str]:
        """What ran since it was asked last."""
        with self.world.lock:
            ran, self.world.ran = self.world.ran, []
        return ran


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    before = set(threading.enumerate())
    store = Store(str(tmp_path / "cache.db"))
    made = House(World(), store, Solver(store, resolve, 4))
    yield made
    assert made.solver.close(5)
    assert not [thread for thread in threading.enumerate() if thread not in before and thread.name.startswith("solver")]
    assert made.solver.idle
    assert not made.world.leaked()
    assert not made.solver.builds and not made.solver.scheduler._executing
    store.close()


def chain(world: World, **more: Any) -> Drawing:
    drawing = Drawing()
    drawing.add(Step(world, "image"))
    drawing.add(Step(world, "context", digest=sha("context 1")))
    drawing.add(Step(world, "deps"), "image")
    drawing.add(Step(world, "copy", content=(1,)), "deps", "context")
    drawing.add(Step(world, "make", **more), "copy")
    return drawing


def test_a_graph_is_built_and_found_again(house: House) -> None:
    graph = chain(house.world).graph("make")
    value = house.build(graph)
    assert value == "make(copy(deps(image()),context()))"
    assert sorted(house.ran()) == ["context", "copy", "deps", "hash copy", "image", "make"]
    assert house.build(graph) == value
    assert house.ran() == ["load make"]


def test_only_what_sees_a_change_runs_again(house: House) -> None:
    house.build(chain(house.world).graph("make"))
    house.ran()
    drawing = chain(house.world)
    drawing.steps["context"].digest = sha("context 2")
    # Another definition, the same content: it is fetched and looked at, and nothing else.
    house.world.values["r1"] = house.world.values["r1"]
    house.build(drawing.graph("make"))
    assert house.ran() == ["context", "hash copy", "load make"]
    # Other content: the steps on it run, those before are found.
    drawing = chain(house.world)
    drawing.steps["context"].digest = sha("context 3")
    drawing.steps["context"].make = lambda values: "other"
    assert house.build(drawing.graph("make")) == "make(copy(deps(image()),other))"
    assert sorted(house.ran()) == ["context", "copy", "hash copy", "load deps", "make"]
    # And by the definition of the second context the result is found at once now.
    drawing = chain(house.world)
    drawing.steps["context"].digest = sha("context 2")
    house.build(drawing.graph("make"))
    assert house.ran() == ["load make"]


def test_equal_content_meets_again_after_different_definitions(house: House) -> None:
    """A step whose output is what it was: what looks at the content of that is found."""
    drawing = Drawing()
    drawing.add(Step(house.world, "one", make=lambda values: "same"))
    drawing.add(Step(house.world, "user", content=(0,)), "one")
    house.build(drawing.graph("user"))
    house.ran()
    drawing = Drawing()
    drawing.add(Step(house.world, "two", make=lambda values: "same"))
    drawing.add(Step(house.world, "user", content=(0,)), "two")
    house.build(drawing.graph("user"))
    assert house.ran() == ["two", "hash user", "load user"]


def test_without_content_no_input_is_made_for_its_key(house: House) -> None:
    """An image that nobody needs the files of is not pulled."""
    drawing = Drawing()
    drawing.add(Step(house.world, "image"))
    drawing.add(Step(house.world, "run"), "image")
    drawing.add(Step(house.world, "context"))
    drawing.add(Step(house.world, "copy", content=(0,)), "context")
    drawing.add(Step(house.world, "merge"), "run", "copy")
    house.build(drawing.graph("merge"))
    house.ran()
    drawing.steps["context"].digest = sha("other")
    house.build(drawing.graph("merge"))
    assert house.ran() == ["context", "hash copy", "load merge"]


def test_selectors_tell_keys_apart(house: House) -> None:
    for selector, expected in (("a", ["image", "run"]), ("b", ["load image", "run"]), ("a", ["load run"])):
        drawing = Drawing()
        drawing.add(Step(house.world, "image"))
        drawing.add(Step(house.world, "run", selector=selector), "image")
        house.build(drawing.graph("run"))
        assert house.ran() == expected


def test_a_source_is_found_by_its_other_digest(house: House) -> None:
    drawing = Drawing()
    drawing.add(Step(house.world, "image", digest=sha("manifest 1"), also=(sha("config"),)))
    drawing.add(Step(house.world, "run"), "image")
    house.build(drawing.graph("run"))
    house.ran()
    drawing.steps["image"].digest = sha("manifest 2")
    house.build(drawing.graph("run"))
    assert house.ran() == ["load run"]


def test_outputs_have_keys_of_their_own(house: House) -> None:
    drawing = Drawing()
    drawing.add(Step(house.world, "run", outputs=2))
    drawing.add(Step(house.world, "use"), "run#1")
    drawing.add(Step(house.world, "both"), "run", "run#1")
    assert house.build(drawing.graph("use")) == "use(run()#1)"
    assert house.ran() == ["run", "use"]
    assert house.build(drawing.graph("both")) == "both(run(),run()#1)"
    assert sorted(house.ran()) == ["both", "load run", "load run"]
    with pytest.raises(Error, match="invalid response from exec need 5 index but 2 results received"):
        house.build(drawing.graph("run#5"))


def test_ignoring_the_cache(house: House) -> None:
    def drawing(ignore: bool) -> Graph:
        made = Drawing()
        made.add(Step(house.world, "image"))
        made.add(Step(house.world, "run"), "image", ignore=ignore)
        made.add(Step(house.world, "more"), "run")
        made.add(Step(house.world, "copy", content=(0,)), "more")
        return made.graph("copy")

    house.build(drawing(False))
    house.ran()
    house.build(drawing(True))
    # What stands on it runs, too, but for what only looks at what came out.
    assert house.ran() == ["load image", "run", "more", "hash copy", "load copy"]
    house.build(drawing(False))
    assert house.ran() == ["load copy"]
    house.build(drawing(False), ignore_cache=True)
    assert house.ran() == ["image", "run", "more", "hash copy", "copy"]


def test_a_step_that_gave_something_else_does_not_mix_the_old_with_the_new(house: House) -> None:
    """One definition, two contents: what was made of the old is found by the old content only."""

    def drawing(value: str, ignore: bool) -> Graph:
        made = Drawing()
        made.add(Step(house.world, "fetch", make=lambda values: value), ignore=ignore)
        made.add(Step(house.world, "copy", content=(0,)), "fetch")
        made.add(Step(house.world, "more"), "copy")
        return made.graph("more")

    assert house.build(drawing("old", False)) == "more(copy(old))"
    assert house.build(drawing("new", True)) == "more(copy(new))"
    house.ran()
    assert house.build(drawing("unused", False)) == "more(copy(new))"
    assert house.ran() == ["load more"]
    other = Drawing()
    other.add(Step(house.world, "other", make=lambda values: "old"))
    other.add(Step(house.world, "copy", content=(0,)), "other")
    other.add(Step(house.world, "more"), "copy")
    assert house.build(other.graph("more")) == "more(copy(old))"
    assert house.ran() == ["other", "hash copy", "load more"]


def test_random_digests_are_never_found(house: House) -> None:
    drawing = Drawing()
    drawing.add(Step(house.world, "local", digest="random:1"))
    drawing.add(Step(house.world, "run"), "local")
    drawing.add(Step(house.world, "copy", content=(0,)), "run")
    house.build(drawing.graph("copy"))
    house.ran()
    house.build(drawing.graph("copy"))
    assert house.ran() == ["local", "run", "hash copy", "load copy"]


def test_a_result_that_is_gone_is_made_again(house: House) -> None:
    graph = chain(house.world).graph("make")
    house.build(graph)
    house.ran()
    gone = [name for name, value in house.world.values.items() if value.startswith("make")]
    for name in gone:
        del house.world.values[name]
    assert house.build(graph) == "make(copy(deps(image()),context()))"
    assert house.ran() == ["load copy", "make"]
    assert house.store.keys_of(gone[0]) == []
    assert house.build(graph) and house.ran() == ["load make"]


def test_keys_without_results_lead_on(house: House) -> None:
    graph = chain(house.world).graph("make")
    house.build(graph)
    for name, value in list(house.world.values.items()):
        if value.startswith(("copy", "deps", "image")):
            house.store.forget(name)
            del house.world.values[name]
    house.ran()
    house.build(graph)
    assert house.ran() == ["load make"]


def test_errors_of_any_class_have_copies_of_their_own() -> None:
    """One that is not made of its text as well: the end of its step would be lost, and its build would wait forever."""
    error = PathError("lstat", "/none", errno.ENOENT).at_vertex("sha256:1")
    made = copied(error)
    assert type(made) is PathError and str(made) == str(error) == "lstat /none: no such file or directory"
    assert made.number == errno.ENOENT and made.details == error.details and made.details is not error.details


def test_two_builds_share_one_graph(house: House) -> None:
    drawing = chain(house.world, delay=0.3)
    values: list[str] = []
    threads = [
        threading.Thread(target=lambda name=name: values.append(house.build(drawing.graph("make"), name)))
        for name in ("a", "b", "c", "d", "e")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(values)) == 1 and len(values) == 5
    ran = house.ran()
    assert Counter(ran)["make"] == Counter(ran)["copy"] == Counter(ran)["image"] == 1


def test_the_same_work_under_other_digests_runs_once(house: House) -> None:
    """Two clients, each with a context of its own that has the same in it."""
    heard = [Heard(), Heard()]
    results: list[str] = []

    def build(number: int) -> None:
        drawing = Drawing()
        context, copy, run = f"context{number}", f"copy{number}", f"run{number}"
        drawing.add(Step(house.world, context, make=lambda values: "same"))
        drawing.add(Step(house.world, copy, digest=sha("copy"), content=(0,), make=lambda values: "c"), context)
        drawing.add(Step(house.world, run, digest=sha("run"), delay=0.4, make=lambda values: "r"), copy)
        with house.solver.job(f"job{number}", progress=heard[number]) as job:
            result = job.build(drawing.graph(run))
            results.append(result.ref.id)
            result.release()

    threads = [threading.Thread(target=build, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ran = house.ran()
    assert len([name for name in ran if name.startswith("run")]) == 1
    assert len([name for name in ran if name.startswith("load")]) <= 1
    assert results[0] == results[1]
    for number in range(2):
        assert heard[number].last(f"run{number}").HasField("completed")
        assert b"begins" in b"".join(log.msg for log in heard[number].logs if log.vertex == f"run{number}")


def test_a_follower_goes_on_when_its_leader_goes_away(house: House) -> None:
    begun = threading.Event()

    def draw(number: int) -> Graph:
        drawing = Drawing()
        step = Step(house.world, f"run{number}", digest=sha("run"), delay=0.5, during=lambda context: begun.set())
        drawing.add(step)
        return drawing.graph(f"run{number}")

    first, second = house.solver.job("1"), house.solver.job("2")
    one = first.start(draw(1))
    assert begun.wait(5)
    two = second.start(draw(2))
    time.sleep(0.1)
    first.close()
    with pytest.raises(Cancelled):
        one.wait()
    result = two.wait()
    assert house.ran() == ["run1"]
    result.release()
    second.close()


def test_what_stands_on_a_step_that_ran_again_is_other_work(house: House) -> None:
    """One build has it anew, another takes what is cached: what is made of these at the same time is not the same."""

    def drawing(value: str, ignore: bool) -> Graph:
        made = Drawing()
        made.add(Step(house.world, "fetch", make=lambda values: value), ignore=ignore)
        made.add(Step(house.world, "more", delay=0.3), "fetch")
        return made.graph("more")

    fetch = drawing("old", False)
    house.build(Graph({"fetch": fetch.vertexes["fetch"]}, Edge("fetch", 0)))
    values: dict[str, str] = {}

    def build(name: str, graph: Graph) -> None:
        values[name] = house.build(graph, name)

    plain = threading.Thread(target=build, args=("old", drawing("unused", False)))
    plain.start()
    time.sleep(0.1)
    anew = threading.Thread(target=build, args=("new", drawing("new", True)))
    anew.start()
    plain.join()
    anew.join()
    assert values == {"old": "more(old)", "new": "more(new)"}


def test_a_step_that_nobody_waits_for_is_cancelled_within_a_second(house: House) -> None:
    begun, ended = threading.Event(), threading.Event()
    calls: list[str] = []

    def during(context: Context) -> None:
        begun.set()
        with context.on_cancel(lambda: calls.append("called")):
            context.wait(30)
            time.sleep(0.05)
        ended.set()
        context.check()

    drawing = Drawing()
    drawing.add(Step(house.world, "run", during=during))
    with house.solver.job("job") as job:
        build = job.start(drawing.graph("run"))
        assert begun.wait(5)
        at = time.monotonic()
        job.cancel()
        with pytest.raises(Cancelled):
            build.wait()
        assert ended.wait(20)
        assert time.monotonic() - at < 1
    assert calls == ["called"]


def test_a_step_that_another_waits_for_goes_on(house: House) -> None:
    begun = threading.Event()
    drawing = Drawing()
    drawing.add(Step(house.world, "run", delay=0.4, during=lambda context: begun.set()))
    first, second = house.solver.job("1"), house.solver.job("2")
    one, two = first.start(drawing.graph("run")), second.start(drawing.graph("run"))
    assert begun.wait(5)
    first.cancel()
    first.close()
    with pytest.raises(Cancelled):
        one.wait()
    result = two.wait()
    result.release()
    second.close()
    assert house.ran() == ["run"]


def test_who_comes_back_after_a_cancellation_gets_it_made(house: House) -> None:
    begun = threading.Event()
    drawing = Drawing()
    drawing.add(Step(house.world, "run", delay=0.3, deaf=True, during=lambda context: begun.set()))
    first = house.solver.job("1")
    first.start(drawing.graph("run"))
    assert begun.wait(5)
    first.cancel()
    first.close()
    assert house.build(drawing.graph("run")) == "run()"


def test_a_failed_step_is_told_with_its_last_lines(house: House) -> None:
    heard = Heard()
    drawing = chain(house.world)
    drawing.steps["copy"].fail = "process did not complete successfully: exit code: 1"
    with house.solver.job("job", progress=heard) as job:
        with pytest.raises(Error, match="exit code: 1") as caught:
            job.build(drawing.graph("make"))
        assert job.failure is not None
        assert (job.failure.digest, job.failure.name) == ("copy", "copy")
        assert job.failure.log.splitlines()[0] == b"copy begins"
    assert errdefs_pb2.Vertex(digest="copy") in caught.value.details
    assert heard.last("copy").error == "process did not complete successfully: exit code: 1"
    assert not heard.last("make").HasField("started")
    assert "make" not in house.ran()


def test_an_error_is_each_ones_own(house: House) -> None:
    drawing = Drawing()
    drawing.add(Step(house.world, "run", fail="no", delay=0.2))
    errors: list[Error] = []

    def build(name: str) -> None:
        with pytest.raises(Error) as caught:
            house.build(drawing.graph("run"), name)
        caught.value.with_detail(errdefs_pb2.Source())
        errors.append(caught.value)

    threads = [threading.Thread(target=build, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors[0] is not errors[1] and all(len(error.details) == 2 for error in errors)
    assert house.ran() == ["run"]
    drawing.steps["run"].fail = ""
    assert house.build(drawing.graph("run")) == "run()"


def test_a_source_that_is_not_there(house: House) -> None:
    drawing = chain(house.world)
    drawing.steps["image"].map_error = "image: not found"
    with pytest.raises(NotFound, match="^failed to load cache key: image: not found$"):
        house.build(drawing.graph("make"))


def test_what_a_step_copies_is_not_there(house: House) -> None:
    """It is the step that fails, though it never began: clients show it."""
    heard = Heard()
    drawing = chain(house.world)
    drawing.steps["copy"].hash_error = '"/absent": not found'
    with (
        house.solver.job("job", progress=heard) as job,
        pytest.raises(NotFound, match='^failed to compute cache key: "/absent": not found$'),
    ):
        job.build(drawing.graph("make"))
    assert heard.last("copy").error == '"/absent": not found'
    assert heard.last("copy").HasField("completed") and "copy" not in house.ran()


def test_a_failure_ends_what_runs_beside_it(house: House) -> None:
    ended = threading.Event()

    def during(context: Context) -> None:
        context.wait(30)
        ended.set()

    drawing = Drawing()
    drawing.add(Step(house.world, "slow", during=during))
    drawing.add(Step(house.world, "bad", fail="no", delay=0.1))
    drawing.add(Step(house.world, "both"), "slow", "bad")
    with pytest.raises(Error, match="no"):
        house.build(drawing.graph("both"))
    assert ended.wait(20)


def test_the_bound_is_kept_and_used(house: House) -> None:
    drawing = Drawing()
    names = [drawing.add(Step(house.world, f"s{number}", delay=0.05)) for number in range(16)]
    drawing.add(Step(house.world, "all"), *names)
    house.build(drawing.graph("all"))
    assert house.world.most == 4


def test_nested_builds_give_up_their_place(house: House) -> None:
    """Four builders at a bound of four, each waiting for another graph: no deadlock."""
    inner = Drawing()
    inner.add(Step(house.world, "inner", delay=0.05))

    def during(context: Context) -> None:
        ref = context.solve(inner.graph("inner"))
        ref.release()

    drawing = Drawing()
    names = [drawing.add(Step(house.world, f"outer{number}", during=during)) for number in range(6)]
    drawing.add(Step(house.world, "all"), *names)
    heard = Heard()
    with house.solver.job("job", progress=heard) as job:
        job.build(drawing.graph("all")).release()
    assert Counter(house.ran())["inner"] == 1
    assert heard.last("inner").HasField("completed")


def test_a_nested_build_ends_with_the_outer(house: House) -> None:
    begun, ended = threading.Event(), threading.Event()

    def forever(context: Context) -> None:
        begun.set()
        context.wait(30)
        ended.set()

    inner = Drawing()
    inner.add(Step(house.world, "inner", during=forever))
    drawing = Drawing()
    drawing.add(Step(house.world, "outer", during=lambda context: context.solve(inner.graph("inner")).release()))
    with house.solver.job("job") as job:
        build = job.start(drawing.graph("outer"))
        assert begun.wait(5)
        job.cancel()
        with pytest.raises(Cancelled):
            build.wait()
    assert ended.wait(20)


def test_progress_is_told_to_who_comes_later(house: House) -> None:
    begun, go = threading.Event(), threading.Event()

    def during(context: Context) -> None:
        context.status("layer", 1, 2, action="pulling")
        context.warn("careful", level=1)
        begun.set()
        go.wait(5)

    drawing = Drawing()
    drawing.add(Step(house.world, "run", during=during))
    first, second = Heard(), Heard()
    one, two = house.solver.job("1", "session-1", first), house.solver.job("2", "session-2", second)
    early = one.start(drawing.graph("run"))
    assert begun.wait(5)
    late = two.start(drawing.graph("run"))
    go.set()
    for build in (early, late):
        build.wait().release()
    for heard in (first, second):
        assert [log.msg for log in heard.logs] == [b"run begins\n"]
        assert [(status.ID, status.name, status.current, status.total) for status in heard.statuses] == [
            ("layer", "pulling", 1, 2)
        ]
        assert [warning.short for warning in heard.warnings] == [b"careful"]
        assert heard.last("run").HasField("completed") and not heard.last("run").cached
    one.close()
    two.close()


def test_cached_vertexes_are_shown_as_such(house: House) -> None:
    drawing = chain(house.world)
    house.build(drawing.graph("make"))
    heard = Heard()
    with house.solver.job("job", progress=heard) as job:
        job.build(drawing.graph("make")).release()
    for name in ("make", "copy", "deps"):
        assert heard.last(name).cached and heard.last(name).HasField("completed")


def test_jobs_have_names(house: House) -> None:
    with house.solver.job("a") as job:
        assert house.solver.get("a") is job
        with pytest.raises(Error, match="job ID a exists"):
            house.solver.job("a")
    with pytest.raises(NotFound, match="no such job a"):
        house.solver.get("a")
    with pytest.raises(Cancelled):
        job.start(chain(house.world).graph("make"))


def test_cleanups_come_with_the_end(house: House) -> None:
    calls: list[int] = []
    with house.solver.job("a") as job:
        job.cleanup(lambda: calls.append(1))
        job.cleanup(lambda: calls.append(2))
        assert not calls
    assert calls == [2, 1]
    job.cleanup(lambda: calls.append(3))
    assert calls == [2, 1, 3]


def test_a_resolver_that_refuses_leaves_nothing(house: House) -> None:
    def refuse(vertex: Vertex) -> Any:
        if vertex.name == "make":
            raise Error("no such operation")
        return vertex.op

    house.solver._resolve = refuse
    with house.solver.job("a") as job:
        with pytest.raises(Error, match="no such operation"):
            job.build(chain(house.world).graph("make"))
        assert not house.solver._active


def test_an_error_that_is_made_of_more_than_its_text() -> None:
    """Copying one as copy.copy does would call its class with the text alone."""
    error = PathError("lstat", "/a", errno.ENOENT)
    error.with_detail(errdefs_pb2.Vertex(digest="x"))
    made = copied(error)
    assert made is not error and str(made) == "lstat /a: no such file or directory"
    assert made.message == error.message and isinstance(made, PathError) and made.number == errno.ENOENT
    made.with_detail(errdefs_pb2.Vertex(digest="y"))
    assert len(error.details) == 1 and len(made.details) == 2


def test_a_broken_cache_fails_no_build(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise OSError("no space left on device")

    for name in ("linked", "results", "save", "sync"):
        monkeypatch.setattr(house.store, name, broken)
    assert house.build(chain(house.world).graph("make")) == "make(copy(deps(image()),context()))"


def test_a_tower_of_vertexes(house: House) -> None:
    drawing = Drawing()
    top = drawing.add(Step(house.world, "v0", make=lambda values: "0"))
    for number in range(1, 1100):
        top = drawing.add(Step(house.world, f"v{number}", make=lambda values: str(int(values[0]) + 1)), top)
    order = list(drawing.vertexes)
    graph = Graph({name: drawing.vertexes[name] for name in order}, Edge(top, 0))
    assert house.build(graph) == "1099"
    house.ran()
    assert house.build(graph) == "1099"
    assert house.ran() == ["load v1099"]


# Caches from elsewhere


def layers_of(house: House) -> Any:
    """Each result is one layer, which has its value, and is made when that is asked for."""

    def layers(result: str, make: bool) -> Any:
        if not make:
            return None
        value = house.world.values[result]
        return [{"mediaType": "x", "digest": sha("layer " + value), "size": 1, "annotations": {"value": value}}]

    return layers


def exported(house: House, graph: Graph, mode: str) -> RemoteKeys:
    with house.solver.job("export") as job:
        result = job.build(graph)
        made = remote.export(result.chains(), layers_of(house), mode)
        result.release()
    written = remote.write(made, remote.Options(mode))
    return remote.read("registry", written.config_data, remote.read_manifest(written.manifest_data).layers)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(("mode", "second"), [("max", ["pull deps"]), ("min", ["deps", "image"])])
def test_a_cache_of_another_host(house: House, tmp_path: Path, mode: str, second: list[str], warm: bool) -> None:
    if warm:
        house.build(chain(house.world).graph("make"))  # so that the export is of what was found, not made
    cache = exported(house, chain(house.world).graph("make"), mode)
    other_store = Store(str(tmp_path / "other.db"))
    other = House(World(), other_store, Solver(other_store, resolve, 4))
    assert other.build(chain(other.world).graph("make"), caches=[cache]) == "make(copy(deps(image()),context()))"
    # Only what has to be known to find it: nothing by content, as it is the same definition.
    assert other.ran() == ["pull make"]
    # From now on it is one's own.
    assert other.build(chain(other.world).graph("make")) == "make(copy(deps(image()),context()))"
    assert other.ran() == ["load make"]
    # What came with it for a step below depends on the mode.
    drawing = chain(other.world)
    drawing.steps["context"].digest = sha("other")
    drawing.steps["context"].make = lambda values: "other"
    assert other.build(drawing.graph("make"), caches=[cache]) == "make(copy(deps(image()),other))"
    assert sorted(name for name in other.ran() if not name.endswith(("context", "copy", "make"))) == second
    assert other.solver.close(5) and not other.world.leaked()
    other_store.close()


def test_by_content_in_a_cache_of_another_host(house: House, tmp_path: Path) -> None:
    cache = exported(house, chain(house.world).graph("make"), "min")
    other_store = Store(str(tmp_path / "other.db"))
    other = House(World(), other_store, Solver(other_store, resolve, 4))
    drawing = chain(other.world)
    drawing.steps["context"].digest = sha("a checkout elsewhere")
    assert other.build(drawing.graph("make"), caches=[cache]) == "make(copy(deps(image()),context()))"
    assert other.ran() == ["context", "hash copy", "pull make"]
    assert other.solver.close(5) and not other.world.leaked()
    other_store.close()


@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_stands_on_a_folder_of_a_client_travels(house: House, tmp_path: Path, mode: str) -> None:
    """The folder is never the same twice: its content alone leads on, here and there."""
    there = chain(house.world)
    there.steps["context"].digest = "random:1"
    cache = exported(house, there.graph("make"), mode)
    other_store = Store(str(tmp_path / "other.db"))
    other = House(World(), other_store, Solver(other_store, resolve, 4))
    here = chain(other.world)
    here.steps["context"].digest = "random:2"
    assert other.build(here.graph("make"), caches=[cache]) == "make(copy(deps(image()),context()))"
    assert other.ran() == ["context", "hash copy", "pull make"]
    assert other.solver.close(5) and not other.world.leaked()
    other_store.close()


# Random graphs


def expected(drawing: Drawing, top: str) -> str:
    """What one after the other gives."""
    done: dict[str, str] = {}
    for name, vertex in drawing.vertexes.items():
        values = [done[edge.vertex] + (f"#{edge.index}" if edge.index else "") for edge in vertex.inputs]
        step = drawing.steps[name]
        done[name] = step.make(values) if step.make else f"{name}({','.join(values)})"
    return done[top]


def random_drawing(world: World, random: Random, prefix: str, size: int) -> Drawing:
    drawing = Drawing()
    names: list[str] = []
    for number in range(size):
        inputs = [
            name + random.choice(["", "#1"])
            for name in random.sample(names, min(len(names), random.choice([0, 1, 1, 2, 3])))
        ]
        content = tuple(place for place in range(len(inputs)) if random.random() < 0.4)
        step = Step(
            world,
            f"{prefix}{number}",
            content=content,
            outputs=2,
            delay=random.choice([0, 0, 0.002, 0.01]),
            make=(lambda values: "same") if random.random() < 0.2 else None,
        )
        names.append(drawing.add(step, *inputs, ignore=random.random() < 0.05))
    return drawing


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_give_what_one_after_the_other_gives(house: House, seed: int) -> None:
    """Several builds at a time on one drawing: the right values, and no vertex runs twice."""
    random = Random(seed)
    drawing = random_drawing(house.world, random, "v", 25)
    tops = random.sample(list(drawing.vertexes), 6)
    failures: list[str] = []

    def build(name: str, top: str) -> None:
        value = house.build(drawing.graph(top), name)
        if value != expected(drawing, top):
            failures.append(f"{top}: {value}")

    jobs = [house.solver.job(f"holder{top}") for top in tops]
    builds = [job.start(drawing.graph(top)) for job, top in zip(jobs, tops)]
    threads = [threading.Thread(target=build, args=(f"j{top}", top)) for top in tops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a build hangs"
    for one in builds:
        one.wait().release()
    assert not failures
    # One may have been cancelled, as a record was found meanwhile, and have begun again: none is done twice.
    assert max(house.world.finished.values()) == 1, house.world.finished
    for job in jobs:
        job.close()
    # Again, from the cache: the same values.
    for top in tops:
        build("again" + top, top)
    assert not failures


@pytest.mark.parametrize("seed", range(12))
def test_random_cancellations_and_failures_leave_nothing(house: House, seed: int) -> None:
    random = Random(100 + seed)
    drawing = random_drawing(house.world, random, "v", 25)
    for step in drawing.steps.values():
        if random.random() < 0.1:
            step.fail = "broken"
    wrong: list[str] = []

    def client(number: int) -> None:
        mine = Random(seed * 1000 + number)
        for turn in range(6):
            top = mine.choice(list(drawing.vertexes))
            job = house.solver.job(f"{number}-{turn}")
            timer = threading.Timer(mine.random() * 0.1, job.cancel) if mine.random() < 0.6 else None
            if timer:
                timer.start()
            try:
                result = job.build(drawing.graph(top))
                assert isinstance(result.ref, Held)
                if result.ref.value != expected(drawing, top):
                    wrong.append(top)
                result.release()
            except Cancelled:
                pass
            except Error as error:
                if error.message != "broken":
                    wrong.append(str(error))
            finally:
                if timer:
                    timer.cancel()
                    timer.join()
                job.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a client hangs"
    assert not wrong
