"""Short plots, in the language of `stories_template`."""

MISSING_PET = """
@alone
{hero.They} had {pet.a} named {pet} who liked to sleep {spot.at} {spot}.
| {hero.They} had {pet.a} named {pet}. At night, {pet} always slept {spot.at} {spot}.
{one_day}, {hero} had {food.a} for ^{pet}, but the ^{pet.kind} was gone.
| {one_day}, {hero} came home with {food.a}, but the ^{pet.kind} was gone.

"Where are you, ^{pet}?" [called|cried] {hero}. {hero.They} looked {spot2.at} {spot2}, but [found|saw] [nothing|no one].
| {hero} looked {spot2.at} {spot2} and called, "Come here, ^{pet}!" But no one came.
"Where does ^{pet} like to sleep?" asked {hero.their} {elder}.
| {hero.Their} {elder} said, "Maybe ^{pet} went to sleep."
"I know! {pet.They} must be {spot.at} ^{spot}!" said {hero}.
| So {hero} [ran to look|went and looked] {spot.at} ^{spot}.
Yes, there was ^{pet}, [warm and happy|fast asleep]. {hero} laughed and gave {pet.them} the ^{food}.
| And there was the little ^{pet.kind}! {pet} [woke up|jumped up] and ate the ^{food} at once.
@smile
"""

FALLING_STAR = """
@alone
@hobby
{hero.They} wanted {toy.a} more than anything.
| {hero.They} had always wanted {toy.a}.
One night, {hero} and {hero.their} {elder} saw a falling star. "Make a wish," said {hero.their} ^{elder}.
| One night, {hero.their} {elder} [called|said], "Come and see! A falling star! You can make a wish."
"I wish for {toy.article} {toy.colour} ^{toy}," said ^{hero} [in a soft voice|and closed {hero.their} eyes].
| "I would like {toy.article} {toy.colour} ^{toy}," said ^{hero}.

In the morning, there was {box.a} next to the bed.
| When {hero} woke up, {hero.they} found {box.a} at the door.
{hero} opened the ^{box}. There was {toy.article} ^{toy.colour} ^{toy} in it!
| In the ^{box.colour} ^{box} was {toy.article} ^{toy.colour} ^{toy}!
"The star heard me!" said {hero} and showed the ^{toy} to {hero.their} ^{elder}, who only smiled.
| {hero} ran to {hero.their} ^{elder}. "Look at my ^{toy}!" {hero.Their} {elder} only smiled.
@smile
"""

ON_THE_ROOF = """
@pair
{one_day}, they [took|brought] {toy.a} to the {place} and [threw it up in the air|played with it].
| {one_day}, they were playing with {toy.a} {place.at} {place}.
{hero} threw it too high, and the ^{toy} landed on a roof.
| Then a strong wind came, and the ^{toy} flew onto a roof.
"How can we get the ^{toy} down?" asked {hero}.
| "Oh no, now the ^{toy} is lost!" said {hero}.

{friend} ran to {hero}'s {elder} and asked for a ladder.
| "I will get help," said {friend} and ran to {hero}'s {elder}.
Soon {hero}'s ^{elder} came with a [long|tall] ladder. {friend} climbed up and threw down the ^{toy.colour} ^{toy}.
| {hero}'s ^{elder} brought a [long|tall] ladder, and {friend} climbed up to get the ^{toy.colour} ^{toy}.
"You are so brave, ^{friend}!" said {hero}.
| "Thank you, ^{friend}!" said {hero}. "You are so brave."
After that, they played with the ^{toy} on the ground.
| Then they went home from the ^{place} and [sang|laughed] all the way.
|
"""
