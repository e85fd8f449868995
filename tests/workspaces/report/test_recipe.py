"""What a run was made with."""

from tests.workspaces.report.conftest import made_up
from workspaces.report import recipe
from workspaces.report.runs import find


def test_the_card_names_what_differs_from_the_experiment(sweep):
    (card,) = recipe.recipes(find(sweep).finished)
    assert card.name == "pusht_state_small"
    differences = {key: (old, new) for key, old, new in card.differences}
    assert differences["horizon"] == ("16", "10, 16")
    assert differences["workspace.num_steps"] == ("9000", "24")
    assert "optimizer.lr" not in differences
    assert "run_dir" not in differences
    assert any("+experiment=pusht_state_small" in typed for _, typed in card.commands)
    facts = {fact.name: fact.values for fact in card.facts}
    assert "torch" in next(iter(facts["versions"]))
    assert any("at most 20 control steps" in sentence for sentence in facts["protocol"])


def test_versions_that_differ_are_told_apart():
    runs = [
        made_up([0.5], path=name, record={"versions": {"torch": version, "numpy": "2.4"}, "commit": "abc"})
        for name, version in (("old", "2.11"), ("new", "2.15"))
    ]
    facts = {fact.name: fact.values for fact in recipe.recipes(runs)[0].facts}
    assert facts["torch"] == {"2.11": ["old"], "2.15": ["new"]}
    assert list(facts["versions"]) == ["numpy 2.4"]
    assert list(facts["commit"]) == ["abc"]


def test_a_run_without_an_experiment_says_so():
    (card,) = recipe.recipes([made_up([0.5], name="of_my_own")])
    assert "There is no experiment 'of_my_own'" in card.missing
