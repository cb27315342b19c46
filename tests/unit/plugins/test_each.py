"""The look-up that describes many bots by one variable."""

import pytest
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template


def template(text: str, **variables: object) -> object:
    trusted = {name: trust_as_template(v) if isinstance(v, str) else v for name, v in variables.items()}
    return Templar(loader=DataLoader(), variables=trusted).template(trust_as_template(text))


def test_variable_is_evaluated_once_per_element_with_its_own_name_for_it() -> None:
    found = template(
        "{{ query('clawdeploy.fleet.each', bots, 'address', as='bot') }}",
        bots=[{"n": 1}, {"n": 2}],
        address="{{ bot.n + base }}",
        base=10,
    )
    assert found == [11, 12]


def test_looks_ups_can_be_nested() -> None:
    found = template(
        "{{ query('clawdeploy.fleet.each', [1, 2], 'row', as='a') }}",
        row="{{ query('clawdeploy.fleet.each', [3, 4], 'cell', as='b') }}",
        cell="{{ a * b }}",
    )
    assert found == [[3, 4], [6, 8]]


def test_missing_variable_is_named() -> None:
    with pytest.raises(AnsibleError, match="no variable 'adress'"):
        template("{{ query('clawdeploy.fleet.each', [1], 'adress') }}")
