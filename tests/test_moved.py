"Scripts of version 0.1 go on working, and are told what to write now."

from importlib import import_module

import pytest

OLD = {
    "divergence": ["token_divergence", "token_logps", "align_vocab", "KINDS"],
    "objective": ["METHODS", "register_method", "method_settings", "cmdp"],
    "rollout": ["BudgetAware", "budget_share"],
    "trainer": ["fold_seed", "prompt_order", "model_card", "check_trackers", "Settings"],
    "source": ["numeric_reward", "load_gsm8k"],
    "pretrained": ["prepare"],
    "widget": ["BudgetPanel", "LiveTrainer", "ShootOut", "TreeExplorer"],
    "tabular": ["TreeCMDP", "random_tree"],
    "augmentation": ["AugmentedPolicy"],
}


@pytest.mark.parametrize("module,name", [(m, n) for m, names in OLD.items() for n in names])
def test_a_name_is_found_where_it_is_now(module, name):
    "The same object, with a sentence that names its new room."
    with pytest.warns(
        FutureWarning, match=rf"cmdp_nbdev\.{module}\.{name} is in cmdp_nbdev\."
    ) as w:
        found = getattr(import_module(f"cmdp_nbdev.{module}"), name)
    room = str(w[0].message).split(" is in ")[1].split(" now")[0]
    assert found is getattr(import_module(room), name)


@pytest.mark.parametrize("module", OLD)
def test_a_name_that_never_was_is_an_error(module):
    "A typo must not look like a renaming."
    with pytest.raises(AttributeError, match="has no attribute 'no_such_thing'"):
        import_module(f"cmdp_nbdev.{module}").no_such_thing
