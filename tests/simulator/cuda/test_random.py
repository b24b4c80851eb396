"""Random numbers of CuPy over the simulated CUDA: distributions, sequences, stream order and faults.

The numbers are those of our generator, so moments and probabilities are compared with the distributions' own, within
five standard errors; seeds are fixed, so the outcome is always the same.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from simulated_cuda import REASON, is_installed

if not is_installed():
    pytest.skip(REASON, allow_module_level=True)

import cupy
from cupy_backends.cuda.libs import curand as binding

from gpucnn.simulator import cuda

Array = np.ndarray[Any, Any]
SUCCESS, NOT_INITIALIZED, TYPE_ERROR, OUT_OF_RANGE, NOT_MULTIPLE, LAUNCH_FAILURE = 0, 101, 103, 104, 105, 201
COUNT = 20_000
ERRORS = 5  # standard errors that a mean may be off
BIT_GENERATORS = ["XORWOW", "MRG32k3a", "Philox4x3210"]


@pytest.fixture
def exact_allocations() -> Iterator[None]:
    """Arrays are allocations of exactly their size, so that each byte next to one is out of bounds."""
    cupy.cuda.set_allocator(None)
    yield
    cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)


def assert_moments(values: Array, mean: float, variance: float, kurtosis: float = 6.0) -> None:
    """Compare mean and variance; `kurtosis` bounds the fourth moment in units of the square of the variance."""
    found = np.asarray(values, np.float64)
    if variance == 0:
        np.testing.assert_array_equal(found, mean)
        return
    assert abs(found.mean() - mean) <= ERRORS * math.sqrt(variance / found.size)
    assert abs(found.var() - variance) <= ERRORS * variance * math.sqrt(kurtosis / found.size)


def assert_probabilities(values: Array, probability: Callable[[int], float], largest: int) -> None:
    """Compare the counts of whole numbers in [0, largest] with their probabilities, by a chi-squared test."""
    expected = np.array([probability(k) * values.size for k in range(largest + 1)])
    counted = np.bincount(values, minlength=largest + 1)
    often = expected >= 20
    statistic = float(((counted[: largest + 1][often] - expected[often]) ** 2 / expected[often]).sum())
    freedom = int(often.sum()) - 1
    assert statistic <= freedom + ERRORS * math.sqrt(2 * freedom)
    rest = values.size - expected[often].sum()
    assert abs(values.size - counted[: largest + 1][often].sum() - rest) <= ERRORS * math.sqrt(rest + 1)


# ---- cupy.random.Generator -------------------------------------------------------------------------------------------


def generator(name: str = "XORWOW", seed: int = 7) -> Any:
    return cupy.random.Generator(getattr(cupy.random, name)(seed))


@pytest.mark.parametrize("name", BIT_GENERATORS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uniform_numbers(name: str, dtype: Any) -> None:
    found = generator(name).random(COUNT, dtype).get()
    assert found.dtype == dtype
    assert found.min() >= 0 < 0.001
    assert 0.999 < found.max() < 1
    assert_moments(found, 0.5, 1 / 12)
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) <= ERRORS / math.sqrt(COUNT)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normal_numbers(dtype: Any) -> None:
    found = generator().standard_normal(COUNT, dtype).get()
    assert_moments(found, 0, 1)
    within = np.mean(np.abs(found) < 1)
    assert abs(within - math.erf(math.sqrt(0.5))) <= ERRORS * math.sqrt(0.22 / COUNT)
    assert abs((found.astype(np.float64) ** 3).mean()) <= ERRORS * math.sqrt(15 / COUNT)


def test_exponential_numbers() -> None:
    found = generator().standard_exponential(COUNT).get()
    assert found.min() >= 0
    assert_moments(found, 1, 1, kurtosis=9)
    assert abs(np.mean(found > 1) - math.exp(-1)) <= ERRORS * math.sqrt(0.25 / COUNT)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 7), (-5, 6), (0, 2**31), (0, 2**32), (-(2**40), 2**40), (0, 2**62 + 1)]
)
def test_integers(low: int, high: int) -> None:
    found = generator().integers(low, high, COUNT).get()
    assert found.dtype == np.int64
    assert low <= found.min()
    assert found.max() < high
    width = high - low
    assert_moments(found, low + (width - 1) / 2, (width * width - 1) / 12)
    if width < 20:
        assert_probabilities(found - low, lambda _: 1 / width, width - 1)


def test_raw_words_have_every_bit() -> None:
    found = cupy.random.XORWOW(3).random_raw(COUNT).get().view(np.uint32)
    for bit in range(32):
        ones = int((found >> bit & 1).sum())
        assert abs(ones - COUNT / 2) <= ERRORS * math.sqrt(COUNT / 4)


@pytest.mark.parametrize("shape", [0.05, 0.7, 1.0, 3.5, 1000.0])
def test_gamma_numbers(shape: float) -> None:
    found = generator().standard_gamma(shape, COUNT).get()
    assert found.min() >= 0
    assert_moments(found, shape, shape, kurtosis=3 + 6 / shape)


@pytest.mark.parametrize(("a", "b"), [(0.05, 0.05), (0.5, 2.0), (1.0, 1.0), (3.0, 0.7), (20.0, 40.0)])
def test_beta_numbers(a: float, b: float) -> None:
    found = generator().beta(a, b, COUNT).get()
    assert found.min() >= 0
    assert found.max() <= 1
    assert_moments(found, a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1)))


@pytest.mark.parametrize("p", [0.001, 0.2, 0.9, 1.0])
def test_geometric_numbers(p: float) -> None:
    found = generator().geometric(p, COUNT).get()
    assert_moments(found, 1 / p, (1 - p) / p**2, kurtosis=15)
    if 0.1 < p < 1:
        assert_probabilities(found, lambda k: p * (1 - p) ** (k - 1) if k else 0, 40)


@pytest.mark.parametrize("p", [0.01, 0.5, 0.95])
def test_numbers_of_the_logarithmic_series(p: float) -> None:
    found = generator().logseries(p, COUNT).get()
    scale = -1 / math.log1p(-p)
    assert_probabilities(found, lambda k: scale * p**k / k if k else 0, 100)


@pytest.mark.parametrize("lam", [0.0, 0.01, 1.0, 7.3, 99.0, 150.0, 1e6, 1e12])
def test_poisson_numbers(lam: float) -> None:
    found = generator().poisson(lam, COUNT).get()
    assert found.min() >= 0
    assert_moments(found, lam, lam, kurtosis=3 + 1 / (lam or 1))
    if 0 < lam < 200:
        assert_probabilities(found, lambda k: math.exp(k * math.log(lam) - lam - math.lgamma(k + 1)), 400)


@pytest.mark.parametrize(
    ("n", "p"), [(0, 0.5), (1, 0.3), (10, 0.0), (10, 1.0), (20, 0.25), (20, 0.9), (3000, 0.4), (10**9, 0.001)]
)
def test_binomial_numbers(n: int, p: float) -> None:
    found = generator().binomial(n, p, COUNT).get()
    assert found.min() >= 0
    assert found.max() <= n
    assert_moments(found, n * p, n * p * (1 - p))
    if n <= 3000 and 0 < p < 1:
        assert_probabilities(found, lambda k: binomial_probability(k, n, p), n)


def binomial_probability(k: int, n: int, p: float) -> float:
    log_ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log_ways + k * math.log(p) + (n - k) * math.log1p(-p))


@pytest.mark.parametrize(
    ("good", "bad", "sample"),
    [(0, 5, 3), (5, 0, 3), (5, 5, 10), (7, 5, 4), (50, 60, 100), (4000, 6000, 3000), (10**8, 10**9, 10**6)],
)
def test_hypergeometric_numbers(good: int, bad: int, sample: int) -> None:
    found = generator().hypergeometric(good, bad, sample, COUNT).get()
    total = good + bad
    assert max(0, sample - bad) <= found.min()
    assert found.max() <= min(good, sample)
    variance = sample * good / total * bad / total * (total - sample) / max(1, total - 1)
    assert_moments(found, sample * good / total, variance)
    if total < 200 and variance:
        ways = math.comb(total, sample)
        assert_probabilities(
            found, lambda k: math.comb(good, k) * math.comb(bad, sample - k) / ways if k <= sample else 0, good
        )


def test_distributions_that_cupy_makes_of_these() -> None:
    random = generator()
    assert_moments(random.chisquare(5.0, COUNT).get(), 5, 10, kurtosis=9)
    assert_moments(random.uniform(-2.0, 4.0, COUNT).get(), 1, 3)
    assert_moments(random.gamma(2.0, 3.0, COUNT).get(), 6, 18, kurtosis=9)
    assert_moments(random.exponential(2.0, COUNT).get(), 2, 4, kurtosis=9)


# ---- Sequences -------------------------------------------------------------------------------------------------------

DRAWS: dict[str, Callable[[Any, int], Any]] = {
    "random": lambda random, count: random.random(count),
    "float": lambda random, count: random.random(count, np.float32),
    "integers": lambda random, count: random.integers(0, 1000, count),
    "long integers": lambda random, count: random.integers(0, 2**40, count),
    "exponential": lambda random, count: random.standard_exponential(count),
    "normal": lambda random, count: random.standard_normal(count),
    "gamma": lambda random, count: random.standard_gamma(0.4, count),
    "beta": lambda random, count: random.beta(2.0, 3.0, count),
    "geometric": lambda random, count: random.geometric(0.1, count),
    "hypergeometric": lambda random, count: random.hypergeometric(30, 40, 20, count),
    "logseries": lambda random, count: random.logseries(0.7, count),
    "poisson": lambda random, count: random.poisson(200.0, count),
    "binomial": lambda random, count: random.binomial(100, 0.3, count),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("bits", BIT_GENERATORS)
def test_one_seed_is_one_sequence_whatever_the_sizes(name: str, bits: str) -> None:
    draw = DRAWS[name]
    whole = draw(generator(bits), 100).get()
    parts = generator(bits)
    found = np.concatenate([draw(parts, count).get() for count in (1, 30, 0, 69)])
    np.testing.assert_array_equal(found, whole)
    assert not np.array_equal(draw(generator(bits, seed=8), 100).get(), whole)


def test_generators_of_one_seed_differ_by_kind() -> None:
    first, second, third = (generator(name).random(50).get() for name in BIT_GENERATORS)
    assert not (first == second).any()
    assert not (first == third).any()


def test_parameters_are_arrays_of_any_strides() -> None:
    shape = cupy.asarray(np.array([[1.0, 1e6], [2.0, 4e6], [3.0, 9e6]]))
    found = generator().standard_gamma(shape.T, (2, 3)).get()
    assert (found[0] < 50).all()
    np.testing.assert_allclose(found[1], [1e6, 4e6, 9e6], rtol=0.02)
    rows = generator().poisson(cupy.asarray(np.array([0.0, 1e8])), (3, 2)).get()
    assert (rows[:, 0] == 0).all()
    np.testing.assert_allclose(rows[:, 1], 1e8, rtol=0.01)


def test_an_element_has_the_words_of_its_index() -> None:
    many = generator().binomial(cupy.asarray(np.array([5, 10**6, 7])), 0.5, 3).get()
    alone = generator()
    found = [int(alone.binomial(n, 0.5)) for n in (5, 10**6, 7)]
    np.testing.assert_array_equal(many, found)


# ---- cupy.random's RandomState and cuRAND's own functions ------------------------------------------------------------


def test_random_state() -> None:
    random = cupy.random.RandomState(5)
    uniform = random.random_sample(COUNT).get()
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert_moments(uniform, 0.5, 1 / 12)
    assert_moments(random.standard_normal(COUNT).get(), 0, 1)
    assert_moments(random.normal(2.0, 3.0, COUNT, np.float32).get(), 2, 9)
    assert_moments(np.log(random.lognormal(0.5, 2.0, COUNT).get()), 0.5, 4)
    assert_probabilities(random.randint(0, 10, COUNT).get(), lambda _: 0.1, 9)
    again = cupy.random.RandomState(5)
    np.testing.assert_array_equal(again.random_sample(COUNT).get(), uniform)
    again.seed(5)
    np.testing.assert_array_equal(again.random_sample(COUNT).get(), uniform)


class Curand:
    """The library by ctypes, with a generator."""

    def __init__(self) -> None:
        binding.getVersion()  # the library is loaded
        self.library = ctypes.CDLL("libcurand.so.10")
        self.generator = self.create(100)

    def create(self, kind: int) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        assert self.library.curandCreateGenerator(ctypes.byref(made), kind) == SUCCESS
        return made

    def status(self, name: str, *arguments: Any) -> int:
        """What an entry point returns."""
        status: int = getattr(self.library, name)(self.generator, *arguments)
        return status

    def draw(self, name: str, dtype: Any, count: int, *parameters: Any) -> Array:
        """Numbers that a function generates."""
        out = cupy.asarray(np.zeros(count, dtype))
        assert self.status(name, ctypes.c_void_p(out.data.ptr), ctypes.c_size_t(count), *parameters) == SUCCESS
        found: Array = out.get()
        return found

    def seed(self, seed: int, offset: int = 0) -> None:
        assert self.status("curandSetPseudoRandomGeneratorSeed", ctypes.c_ulonglong(seed)) == SUCCESS
        assert self.status("curandSetGeneratorOffset", ctypes.c_ulonglong(offset)) == SUCCESS


@pytest.fixture
def curand() -> Iterator[Curand]:
    library = Curand()
    yield library
    assert library.status("curandDestroyGenerator") == SUCCESS


def test_the_generator_is_philox(curand: Curand) -> None:
    """The published answers of Philox4x32-10 for a counter and a key of zeros, by the type whose counter is zero."""
    raw = cupy.random.XORWOW
    words = []
    for index in range(2):
        state = raw(0)
        pointer = ctypes.c_void_p(state.state())
        sequence = np.array([0, 0, index], np.uint64)  # seed, kind, next number
        cupy.cuda.runtime.memcpy(pointer.value, sequence.ctypes.data, sequence.nbytes, 1)
        words.append(int(state.random_raw(1).get().view(np.uint32)[0]))
    assert words[0] == 0x6627E8D5
    assert words[1] != words[0]
    assert curand.draw("curandGenerate", np.uint32, 4).dtype == np.uint32


@pytest.mark.parametrize(
    ("name", "dtype"), [("curandGenerateUniform", np.float32), ("curandGenerateUniformDouble", np.float64)]
)
def test_uniform_numbers_of_curand(curand: Curand, name: str, dtype: Any) -> None:
    found = curand.draw(name, dtype, COUNT)
    assert found.min() > 0
    assert found.max() <= 1
    assert_moments(found, 0.5, 1 / 12)


@pytest.mark.parametrize(
    ("suffix", "dtype", "kind"), [("", np.float32, ctypes.c_float), ("Double", np.float64, ctypes.c_double)]
)
def test_normal_numbers_of_curand(curand: Curand, suffix: str, dtype: Any, kind: Any) -> None:
    assert_moments(curand.draw(f"curandGenerateNormal{suffix}", dtype, COUNT, kind(3), kind(2)), 3, 4)
    logarithms = np.log(curand.draw(f"curandGenerateLogNormal{suffix}", dtype, COUNT, kind(0.5), kind(0.25)))
    assert_moments(logarithms, 0.5, 0.0625)


def test_poisson_numbers_of_curand(curand: Curand) -> None:
    found = curand.draw("curandGeneratePoisson", np.uint32, COUNT, ctypes.c_double(4.5))
    assert_probabilities(found, lambda k: math.exp(k * math.log(4.5) - 4.5 - math.lgamma(k + 1)), 30)


def test_seeds_and_offsets(curand: Curand) -> None:
    curand.seed(11)
    whole = curand.draw("curandGenerate", np.uint32, 50)
    curand.seed(11)
    parts = [curand.draw("curandGenerate", np.uint32, count) for count in (7, 43)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    curand.seed(11, offset=20)
    np.testing.assert_array_equal(curand.draw("curandGenerate", np.uint32, 30), whole[20:])
    curand.seed(12)
    assert not (curand.draw("curandGenerate", np.uint32, 50) == whole).any()


def test_generators_of_every_type(curand: Curand) -> None:
    found = []
    for kind in (100, 101, 121, 141, 142, 161):
        made = curand.create(kind)
        out = cupy.asarray(np.zeros(16, np.uint32))
        assert curand.library.curandGenerate(made, ctypes.c_void_p(out.data.ptr), ctypes.c_size_t(16)) == SUCCESS
        assert curand.library.curandDestroyGenerator(made) == SUCCESS
        found.append(tuple(out.get()))
    assert len(set(found)) == 6


def test_calls_of_curand_that_are_refused(curand: Curand) -> None:
    out = cupy.asarray(np.zeros(8))
    pointer, count = ctypes.c_void_p(out.data.ptr), ctypes.c_size_t(7)
    made = ctypes.c_void_p()
    sobol = 200
    assert curand.library.curandCreateGenerator(ctypes.byref(made), sobol) == TYPE_ERROR
    mean, deviation = ctypes.c_double(0), ctypes.c_double(1)
    assert curand.status("curandGenerateNormalDouble", pointer, count, mean, deviation) == NOT_MULTIPLE
    assert curand.status("curandGenerateLongLong", pointer, count) == TYPE_ERROR
    assert curand.status("curandGeneratePoisson", pointer, count, ctypes.c_double(0)) == OUT_OF_RANGE
    assert curand.status("curandSetGeneratorOrdering", 101) == SUCCESS
    assert curand.status("curandSetGeneratorOrdering", 201) == OUT_OF_RANGE
    assert curand.library.curandGenerate(ctypes.c_void_p(8), pointer, count) == NOT_INITIALIZED


# ---- Stream order ----------------------------------------------------------------------------------------------------


def test_numbers_are_drawn_in_the_order_of_the_stream(curand: Curand) -> None:
    expected = generator().random(10).get()
    curand.seed(3)
    expected_words = curand.draw("curandGenerate", np.uint32, 10)
    curand.seed(3)
    stream = cupy.cuda.Stream(non_blocking=True)
    words = cupy.asarray(np.zeros(10, np.uint32))
    with cuda.stream_order(2), stream:
        later = generator().random(10)  # its state is written in this stream, too
        assert curand.status("curandSetStream", ctypes.c_void_p(stream.ptr)) == SUCCESS
        assert curand.status("curandGenerate", ctypes.c_void_p(words.data.ptr), ctypes.c_size_t(10)) == SUCCESS
        words.data.memset_async(0, 4, stream)
        stream.synchronize()
    np.testing.assert_array_equal(later.get(), expected)
    np.testing.assert_array_equal(words.get(), [0, *expected_words[1:]])


def test_a_graph_draws_new_numbers_at_each_launch() -> None:
    random, expected = generator(), generator().random(20).get()
    out = cupy.asarray(np.zeros(10))
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        drawn = random.random(10)
        out.data.copy_from_device_async(drawn.data, 80, stream)
        graph = stream.end_capture()
    for start in (0, 10):
        graph.launch(stream)
        stream.synchronize()
        np.testing.assert_array_equal(out.get(), expected[start : start + 10])


# ---- Faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact_allocations")
def test_numbers_out_of_bounds(curand: Curand) -> None:
    out = cupy.asarray(np.zeros(8, np.uint32))
    assert curand.status("curandGenerate", ctypes.c_void_p(out.data.ptr), ctypes.c_size_t(9)) == LAUNCH_FAILURE
    assert "curandGenerate: outputPtr" in cuda.last_failure()


@pytest.mark.usefixtures("exact_allocations")
def test_a_bit_generator_whose_state_was_freed() -> None:
    bits = cupy.random.XORWOW(1)
    state = bits._state
    bits._state = state[:0]  # what remains of it, and of its memory
    address = state.data.ptr
    bits.state = lambda: address
    del state
    bits._state = None
    with pytest.raises((RuntimeError, SystemError)) as caught:
        cupy.random.Generator(bits).random(4)
    error = caught.value.__cause__ or caught.value
    assert "cupy.random: uniform: the generator's state" in str(error)


def test_injected_failures_raise() -> None:
    random = generator()
    with (
        cuda.failing("cupy.random: uniform", error="launch_failed") as failure,
        pytest.raises((RuntimeError, SystemError)) as caught,
    ):
        random.random(4)
    assert failure.injected == 1
    error = caught.value.__cause__ or caught.value
    assert str(error).startswith("cupy.random: uniform: ")
    np.testing.assert_array_equal(random.random(4).get(), generator().random(4).get())
    with cuda.failing("curandGenerateUniformDouble", error="launch_failed"), pytest.raises(binding.CURANDError):
        cupy.random.RandomState(1).random_sample(4)
