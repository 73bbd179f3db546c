"""Lines that several plots of the built-in stories use, in the language of `stories_template`."""

SHARED = {
    "alone": """
Once upon a time, there was {hero.a} named {hero}.
| Once upon a time, there lived {hero.a} named {hero}.
| Once upon a time, {hero.a} named {hero} lived in a [small|quiet|pretty] town.
| Once upon a time, in a [small|quiet|pretty] town, there lived {hero.a} named {hero}.
| There once was {hero.a} named {hero}.
| This is the story of {hero.a} named {hero}.
| Not [so long|long] ago, there was {hero.a} named {hero}.
| {hero} was {hero.a} [from a small town|who lived in a little house|who had many friends].
""",
    "pair": """
Once upon a time, there were two [good|best] friends named {hero} and {friend}.
| Once upon a time, {hero} and {friend} were [good|best] friends.
| Once upon a time, there was {hero.a} named {hero}. {hero.Their} best friend was {friend.a} named {friend}.
| This is the story of two friends named {hero} and {friend}.
| There was once {hero.a} named {hero} who had a [good|dear] friend named {friend}.
| {hero} and {friend} were [good|best] friends [who lived on the same street|and liked to play together].
""",
    "trio": """
Once upon a time, there were three friends named {hero}, {friend} and {friend2}.
| Once upon a time, {hero}, {friend} and {friend2} were [good|best] friends.
| Once upon a time, there was {hero.a} named {hero} who had two good friends, {friend} and {friend2}.
| This is the story of three friends named {hero}, {friend} and {friend2}.
| {hero}, {friend} and {friend2} were [good|best] friends [who did everything together|and played together every day].
""",
    "hobby": """
{hero.They} [liked|loved] to {hobby}.
| {hero.They} [liked|loved] to {hobby} all day long.
|
""",
    "smile": """
It was a [good|happy|lovely|wonderful] day.
| {hero} went to bed with a [big|warm] smile.
| {hero} was [so|very] happy.
| That night, {hero} slept very well.
|
|
""",
}
