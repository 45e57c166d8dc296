"""The four worlds: their STRIPS rules, how facts and commands read in words, and what an agent is told of each.

Barman, blocks, gripper and tyreworld are classic planning-competition domains. Predicate and action names are the
customary ones, so problem files from elsewhere load; AgentBoard's goal sentences come out of the templates below.
"""

import dataclasses
from collections.abc import Mapping

from agentrm_jax.envs.pddl.engine import Domain, read_domain


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """One domain with its words.

    Attributes:
      domain: the rules.
      facts: predicate -> sentence; `{0}` is the first argument.
      commands: action -> command text; likewise.
      rules: what the agent reads before the first state.
      only_news: after a step, show only the facts that became true, and offer `look around`.
    """

    domain: Domain
    facts: Mapping[str, str]
    commands: Mapping[str, str]
    rules: str
    only_news: bool


GRIPPER = World(
    read_domain("""
(define (domain gripper-strips)
  (:requirements :strips)
  (:action move :parameters (?a ?b)
    :precondition (and (room ?a) (room ?b) (at-robby ?a))
    :effect (and (not (at-robby ?a)) (at-robby ?b)))
  (:action pick :parameters (?ball ?where ?arm)
    :precondition (and (ball ?ball) (room ?where) (gripper ?arm) (at-robby ?where) (at ?ball ?where) (free ?arm))
    :effect (and (not (at ?ball ?where)) (not (free ?arm)) (carry ?ball ?arm)))
  (:action drop :parameters (?ball ?where ?arm)
    :precondition (and (ball ?ball) (room ?where) (gripper ?arm) (at-robby ?where) (carry ?ball ?arm))
    :effect (and (not (carry ?ball ?arm)) (free ?arm) (at ?ball ?where))))"""),
    {
        "room": "{0} is a room.",
        "ball": "{0} is a ball.",
        "gripper": "{0} is a gripper.",
        "at-robby": "Robby is at {0}.",
        "at": "{0} is at {1}.",
        "free": "{0} is free.",
        "carry": "{1} is carrying {0}.",
    },
    {
        "move": "move from {0} to {1}",
        "pick": "pick {0} at {1} with {2}",
        "drop": "drop {0} at {1} with {2}",
    },
    """You steer Robby, a robot with two grippers, through rooms with balls in them.
- move from ROOM to ROOM: Robby must be in the first room.
- pick BALL at ROOM with GRIPPER: Robby and the ball must be in that room and the gripper free; it then carries it.
- drop BALL at ROOM with GRIPPER: the gripper must carry the ball. It is free afterwards.""",
    False,
)

BLOCKWORLD = World(
    read_domain("""
(define (domain blocksworld-4ops)
  (:requirements :strips)
  (:action pickup :parameters (?b)
    :precondition (and (on-table ?b) (clear ?b) (arm-empty))
    :effect (and (not (on-table ?b)) (not (clear ?b)) (not (arm-empty)) (holding ?b)))
  (:action putdown :parameters (?b)
    :precondition (holding ?b)
    :effect (and (not (holding ?b)) (on-table ?b) (clear ?b) (arm-empty)))
  (:action stack :parameters (?b ?below)
    :precondition (and (holding ?b) (clear ?below))
    :effect (and (not (holding ?b)) (not (clear ?below)) (on ?b ?below) (clear ?b) (arm-empty)))
  (:action unstack :parameters (?b ?below)
    :precondition (and (on ?b ?below) (clear ?b) (arm-empty))
    :effect (and (not (on ?b ?below)) (not (clear ?b)) (not (arm-empty)) (holding ?b) (clear ?below))))"""),
    {
        "on": "{0} is on {1}.",
        "on-table": "{0} is on the table.",
        "clear": "{0} is clear.",
        "holding": "You are holding {0}.",
        "arm-empty": "Your arm is empty.",
    },
    {
        "pickup": "pickup {0}",
        "putdown": "putdown {0}",
        "stack": "stack {0} on {1}",
        "unstack": "unstack {0} from {1}",
    },
    """You move blocks with one arm. A block is clear when nothing lies on it and it is not held.
- pickup BLOCK: it must be on the table and clear, and your arm empty.
- putdown BLOCK: puts the held block on the table.
- stack BLOCK on BLOCK: puts the held block on a clear one.
- unstack BLOCK from BLOCK: the first must be on the second and clear, and your arm empty.""",
    False,
)

BARMAN = World(
    read_domain("""
(define (domain barman)
  (:requirements :strips :typing)
  (:types beverage container hand level dispenser - object
    ingredient cocktail - beverage shot shaker - container)
  (:action grasp :parameters (?h - hand ?c - container)
    :precondition (and (handempty ?h) (ontable ?c))
    :effect (and (not (handempty ?h)) (not (ontable ?c)) (holding ?h ?c)))
  (:action leave :parameters (?h - hand ?c - container)
    :precondition (holding ?h ?c)
    :effect (and (not (holding ?h ?c)) (handempty ?h) (ontable ?c)))
  (:action fill-shot :parameters (?s - shot ?i - ingredient ?h - hand ?other - hand ?d - dispenser)
    :precondition (and (dispenses ?d ?i) (holding ?h ?s) (handempty ?other) (empty ?s) (clean ?s))
    :effect (and (not (empty ?s)) (not (clean ?s)) (contains ?s ?i) (used ?s ?i)))
  (:action refill-shot :parameters (?s - shot ?i - ingredient ?h - hand ?other - hand ?d - dispenser)
    :precondition (and (dispenses ?d ?i) (holding ?h ?s) (handempty ?other) (empty ?s) (used ?s ?i))
    :effect (and (not (empty ?s)) (contains ?s ?i)))
  (:action empty-shot :parameters (?h - hand ?s - shot ?b - beverage)
    :precondition (and (holding ?h ?s) (contains ?s ?b))
    :effect (and (not (contains ?s ?b)) (empty ?s)))
  (:action clean-shot :parameters (?s - shot ?b - beverage ?h - hand ?other - hand)
    :precondition (and (holding ?h ?s) (handempty ?other) (empty ?s) (used ?s ?b))
    :effect (and (not (used ?s ?b)) (clean ?s)))
  (:action pour-shot-to-clean-shaker
    :parameters (?s - shot ?i - ingredient ?k - shaker ?h - hand ?from - level ?to - level)
    :precondition (and (next ?from ?to) (holding ?h ?s) (contains ?s ?i) (empty ?k) (clean ?k) (shaker-level ?k ?from))
    :effect (and (not (contains ?s ?i)) (empty ?s) (contains ?k ?i) (not (empty ?k)) (not (clean ?k)) (unshaked ?k)
      (not (shaker-level ?k ?from)) (shaker-level ?k ?to)))
  (:action pour-shot-to-used-shaker
    :parameters (?s - shot ?i - ingredient ?k - shaker ?h - hand ?from - level ?to - level)
    :precondition (and (next ?from ?to) (holding ?h ?s) (contains ?s ?i) (unshaked ?k) (shaker-level ?k ?from))
    :effect (and (not (contains ?s ?i)) (empty ?s) (contains ?k ?i)
      (not (shaker-level ?k ?from)) (shaker-level ?k ?to)))
  (:action empty-shaker :parameters (?h - hand ?k - shaker ?b - cocktail ?from - level ?to - level)
    :precondition (and (shaker-empty-level ?k ?to) (holding ?h ?k) (contains ?k ?b) (shaked ?k) (shaker-level ?k ?from))
    :effect (and (not (shaked ?k)) (not (contains ?k ?b)) (empty ?k)
      (not (shaker-level ?k ?from)) (shaker-level ?k ?to)))
  (:action clean-shaker :parameters (?h - hand ?other - hand ?k - shaker)
    :precondition (and (holding ?h ?k) (handempty ?other) (empty ?k))
    :effect (clean ?k))
  (:action shake
    :parameters (?b - cocktail ?i - ingredient ?j - ingredient ?k - shaker ?h - hand ?other - hand)
    :precondition (and (cocktail-part1 ?b ?i) (cocktail-part2 ?b ?j)
      (holding ?h ?k) (handempty ?other) (contains ?k ?i) (contains ?k ?j) (unshaked ?k))
    :effect (and (not (unshaked ?k)) (not (contains ?k ?i)) (not (contains ?k ?j)) (shaked ?k) (contains ?k ?b)))
  (:action pour-shaker-to-shot
    :parameters (?b - beverage ?s - shot ?h - hand ?k - shaker ?from - level ?to - level)
    :precondition (and (next ?to ?from)
      (holding ?h ?k) (shaked ?k) (contains ?k ?b) (empty ?s) (clean ?s) (shaker-level ?k ?from))
    :effect (and (not (clean ?s)) (not (empty ?s)) (contains ?s ?b)
      (not (shaker-level ?k ?from)) (shaker-level ?k ?to))))"""),
    {
        "ontable": "{0} is on the table.",
        "holding": "{0} hand is holding {1}.",
        "handempty": "{0} hand is empty.",
        "empty": "{0} is empty.",
        "contains": "{0} contains {1}.",
        "clean": "{0} is clean.",
        "used": "{0} was used for {1}.",
        "dispenses": "{0} dispenses {1}.",
        "shaker-empty-level": "{0} is at level {1} when empty.",
        "shaker-level": "{0} is at level {1}.",
        "next": "Level {1} comes after level {0}.",
        "unshaked": "{0} is unshaked.",
        "shaked": "{0} is shaked.",
        "cocktail-part1": "Part 1 of {0} is {1}.",
        "cocktail-part2": "Part 2 of {0} is {1}.",
    },
    {
        "grasp": "grasp {1} with {0}",
        "leave": "leave {1} with {0}",
        "fill-shot": "fill-shot {0} with {1} from {4} using {2} and {3}",
        "refill-shot": "refill-shot {0} with {1} from {4} using {2} and {3}",
        "empty-shot": "empty-shot {1} of {2} using {0}",
        "clean-shot": "clean-shot {0} of {1} using {2} and {3}",
        "pour-shot-to-clean-shaker": "pour-shot-to-clean-shaker {0} of {1} into {2} using {3} from level {4} to {5}",
        "pour-shot-to-used-shaker": "pour-shot-to-used-shaker {0} of {1} into {2} using {3} from level {4} to {5}",
        "empty-shaker": "empty-shaker {1} of {2} using {0} from level {3} to {4}",
        "clean-shaker": "clean-shaker {2} using {0} and {1}",
        "shake": "shake {0} of {1} and {2} in {3} using {4} and {5}",
        "pour-shaker-to-shot": "pour-shaker-to-shot {0} into {1} from {3} using {2} from level {4} to {5}",
    },
    """You tend a bar with two hands, left and right. Ingredients come from dispensers, cocktails from the shaker.
- grasp CONTAINER with HAND: from the table, with an empty hand.
- leave CONTAINER with HAND: puts it back on the table.
- fill-shot SHOT with INGREDIENT from DISPENSER using HAND and HAND: the first hand holds the shot, which must be \
empty and clean; the second is empty. The shot is then used.
- refill-shot SHOT with INGREDIENT from DISPENSER using HAND and HAND: the same for an empty shot last used for that \
ingredient.
- empty-shot SHOT of BEVERAGE using HAND: throws its contents away.
- clean-shot SHOT of BEVERAGE using HAND and HAND: the first hand holds the empty shot last used for the beverage; the \
second is empty.
- pour-shot-to-clean-shaker SHOT of INGREDIENT into SHAKER using HAND from level LEVEL to LEVEL: the hand holds the \
shot; the shaker must be empty and clean; its level rises by one.
- pour-shot-to-used-shaker SHOT of INGREDIENT into SHAKER using HAND from level LEVEL to LEVEL: the same for a shaker \
that holds an ingredient and is unshaked.
- shake COCKTAIL of INGREDIENT and INGREDIENT in SHAKER using HAND and HAND: the first hand holds the shaker with \
part 1 and part 2 in it; the second is empty.
- pour-shaker-to-shot BEVERAGE into SHOT from SHAKER using HAND from level LEVEL to LEVEL: the hand holds the shaked \
shaker; the shot must be empty and clean; the shaker's level falls by one.
- empty-shaker SHAKER of COCKTAIL using HAND from level LEVEL to LEVEL: throws a shaked cocktail away; the level \
becomes that of the empty shaker.
- clean-shaker SHAKER using HAND and HAND: the first hand holds the empty shaker; the second is empty.""",
    True,
)

TYREWORLD = World(
    read_domain("""
(define (domain tyreworld)
  (:requirements :strips :typing)
  (:types obj container hub - object tool wheel nut - obj)
  (:constants wrench pump jack - tool)
  (:action open :parameters (?c - container)
    :precondition (and (unlocked ?c) (closed ?c)) :effect (and (not (closed ?c)) (isopen ?c)))
  (:action close :parameters (?c - container)
    :precondition (isopen ?c) :effect (and (not (isopen ?c)) (closed ?c)))
  (:action fetch :parameters (?o - obj ?c - container)
    :precondition (and (isopen ?c) (in ?o ?c)) :effect (and (not (in ?o ?c)) (have ?o)))
  (:action put-away :parameters (?o - obj ?c - container)
    :precondition (and (isopen ?c) (have ?o)) :effect (and (not (have ?o)) (in ?o ?c)))
  (:action loosen :parameters (?n - nut ?h - hub)
    :precondition (and (have wrench) (on-ground ?h) (tight ?n ?h)) :effect (and (not (tight ?n ?h)) (loose ?n ?h)))
  (:action tighten :parameters (?n - nut ?h - hub)
    :precondition (and (have wrench) (on-ground ?h) (loose ?n ?h)) :effect (and (not (loose ?n ?h)) (tight ?n ?h)))
  (:action jack-up :parameters (?h - hub)
    :precondition (and (have jack) (on-ground ?h))
    :effect (and (not (on-ground ?h)) (not (have jack)) (not-on-ground ?h)))
  (:action jack-down :parameters (?h - hub)
    :precondition (not-on-ground ?h) :effect (and (not (not-on-ground ?h)) (on-ground ?h) (have jack)))
  (:action undo :parameters (?n - nut ?h - hub)
    :precondition (and (have wrench) (not-on-ground ?h) (fastened ?h) (loose ?n ?h))
    :effect (and (not (fastened ?h)) (not (loose ?n ?h)) (unfastened ?h) (have ?n)))
  (:action do-up :parameters (?n - nut ?h - hub)
    :precondition (and (have wrench) (have ?n) (not-on-ground ?h) (unfastened ?h))
    :effect (and (not (unfastened ?h)) (not (have ?n)) (fastened ?h) (loose ?n ?h)))
  (:action remove-wheel :parameters (?w - wheel ?h - hub)
    :precondition (and (not-on-ground ?h) (unfastened ?h) (on ?w ?h))
    :effect (and (not (on ?w ?h)) (free ?h) (have ?w)))
  (:action put-on-wheel :parameters (?w - wheel ?h - hub)
    :precondition (and (not-on-ground ?h) (unfastened ?h) (free ?h) (have ?w))
    :effect (and (not (free ?h)) (not (have ?w)) (on ?w ?h)))
  (:action inflate :parameters (?w - wheel)
    :precondition (and (have pump) (intact ?w) (not-inflated ?w))
    :effect (and (not (not-inflated ?w)) (inflated ?w))))"""),
    {
        "isopen": "{0} is open.",
        "closed": "{0} is closed.",
        "unlocked": "{0} is unlocked.",
        "have": "You have {0}.",
        "in": "{0} is in {1}.",
        "on": "{0} is on {1}.",
        "loose": "Nut {0} on hub {1} is loose.",
        "tight": "Nut {0} on hub {1} is tight.",
        "on-ground": "Hub {0} is on the ground.",
        "not-on-ground": "Hub {0} is off the ground.",
        "inflated": "Wheel {0} is inflated.",
        "not-inflated": "Wheel {0} is not inflated.",
        "fastened": "Hub {0} is fastened.",
        "unfastened": "Hub {0} is unfastened.",
        "free": "Hub {0} is free.",
        "intact": "Wheel {0} is intact.",
    },
    {
        "open": "open {0}",
        "close": "close {0}",
        "fetch": "fetch {0} from {1}",
        "put-away": "put-away {0} in {1}",
        "loosen": "loosen {0} on {1}",
        "tighten": "tighten {0} on {1}",
        "jack-up": "jack-up {0}",
        "jack-down": "jack-down {0}",
        "undo": "undo {0} on {1}",
        "do-up": "do-up {0} on {1}",
        "remove-wheel": "remove-wheel {0} from {1}",
        "put-on-wheel": "put-on-wheel {0} on {1}",
        "inflate": "inflate {0}",
    },
    """You change the wheels of a car. Tools and spare wheels lie in a container.
- open CONTAINER: it must be unlocked. - close CONTAINER
- fetch THING from CONTAINER: the container must be open. - put-away THING in CONTAINER: likewise.
- loosen NUT on HUB, tighten NUT on HUB: with the wrench, while the hub is on the ground.
- jack-up HUB: with the jack, which stays under the hub. - jack-down HUB: gives the jack back.
- undo NUT on HUB: takes a loose nut off a hub that is off the ground, with the wrench; the hub is then unfastened.
- do-up NUT on HUB: puts the nut back on an unfastened hub that is off the ground, with the wrench.
- remove-wheel WHEEL from HUB: the hub must be off the ground and unfastened; it is then free.
- put-on-wheel WHEEL on HUB: the hub must be off the ground, unfastened and free.
- inflate WHEEL: an intact wheel, with the pump.""",
    True,
)

WORLDS: dict[str, World] = {"gripper": GRIPPER, "blockworld": BLOCKWORLD, "barman": BARMAN, "tyreworld": TYREWORLD}
