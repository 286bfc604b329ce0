"""Domains: freezing, refining and uniting."""

import pytest

from mergeline.symmetry.domains import NONE, Domains, Product, Sum


@pytest.fixture
def domains():
    found = Domains()
    found.node = "block.linear"
    return found


def test_one_slot_needs_no_domain(domains):
    assert domains.new(1) == NONE
    assert domains.new(2) == 0


def test_united_domains_are_one(domains):
    a, b, c = (domains.new(4) for _ in range(3))
    domains.unite(b, c)
    domains.unite(c, a)
    assert domains.find(a) == domains.find(b) == domains.find(c) == a
    assert domains.is_open(a)
    assert not domains.is_open(b)


def test_freezing_reaches_everything_below_and_says_why_and_where(domains):
    whole = domains.new(6)
    domains.refine_product(whole, 3)
    product = domains.refinement(whole)
    assert isinstance(product, Product)
    inner = int(product.inner[1])
    domains.refine_sum(inner, [1])
    domains.freeze(whole, "reaches an output")
    for domain in (whole, product.outer, inner, int(domains.refinement(inner).segments[1])):
        assert str(domains.reason(domain)) == "reaches an output (block.linear)"


def test_freezing_a_part_leaves_the_rest_free(domains):
    whole = domains.new(6)
    domains.refine_sum(whole, [2, 4])
    total = domains.refinement(whole)
    assert isinstance(total, Sum)
    assert total.starts.tolist() == [0, 2, 4]
    first, second, third = total.segments.tolist()
    domains.freeze(second, "met a fixed axis")
    assert domains.reason(first) is domains.reason(third) is domains.reason(whole) is None


def test_a_segment_of_one_slot_stays_where_it_is(domains):
    whole = domains.new(3)
    domains.refine_sum(whole, [1])
    assert domains.refinement(whole).segments.tolist()[0] == NONE


def test_every_change_counts_and_no_change_does_not(domains):
    a, b = domains.new(4), domains.new(4)
    before = domains.version
    domains.unite(a, b)
    domains.freeze(a, "once")
    assert domains.version == before + 2
    domains.freeze(b, "again")
    assert domains.version == before + 2
    assert str(domains.reason(b)) == "once (block.linear)"


def test_the_first_name_that_is_suggested_stays(domains):
    a, b = domains.new(4), domains.new(4)
    domains.suggest(b, "heads")
    domains.unite(a, b)
    domains.suggest(a, "groups")
    assert domains.hint(a) == "heads"
