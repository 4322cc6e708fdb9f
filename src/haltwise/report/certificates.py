"""Certificates in sentences, for the page of a run and the terminal."""

from haltwise.certificates import Certificate, Promise
from haltwise.report.formats import as_given, count, num, percent

__all__ = ["certificate_sentences"]


def certificate_sentences(certificate: Certificate) -> list[str]:
    """What is certified, by what, on which assumption and at what cost."""
    unit = "" if certificate.unit is None else f" {certificate.unit.value}"
    rests_on = f"{count(certificate.num_problems)} problems"
    if certificate.promise is not Promise.MEAN:
        assert certificate.num_groups is not None
        rests_on += f" in {count(certificate.num_groups)} groups"
    aside = certificate.num_set_aside
    others = f"; its thresholds were found on {count(aside)} others" if aside else ""
    found = [
        f"Certified: {certificate.statement}.",
        f"It rests on {rests_on}, of which the risk was {num(certificate.mean_risk)}{others}.",
        f"It assumes that {certificate.assumption}.",
    ]
    if certificate.num_clipped:
        found.append(
            f"The loss of {count(certificate.num_clipped)} of them was above "
            f"{as_given(certificate.bound)} under some threshold, and counts as that."
        )
    if certificate.policy is not None and certificate.price is not None:
        found.append(
            f"It holds at a price of {as_given(certificate.price)}, for stops where "
            f"{' or '.join(certificate.policy.rule.reasons)}."
        )
    if certificate.uncertified_savings > 0:
        found.append(
            f"The stop saves {num(certificate.savings)}{unit} on average, "
            f"{percent(certificate.kept)} of the {num(certificate.uncertified_savings)} that would "
            "be saved if these problems were all there are."
        )
    return found
